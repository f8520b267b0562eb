"""A search for a better recipe: Optuna proposes, `trial.py` tries, hopeless trials end early, SQLite keeps everything.

The first trial is the recipe as it is, so the result is never worse than it on the images of the search: the train and
select roles. The best of many trials scores too well there, because it was chosen for that score. What it is worth is
the score of `dermlens train --recipe` on its test, which the search never sees.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import tensorflow as tf
from optuna.trial import TrialState
from rich.console import Console

from dermlens.data.records import Dataset
from dermlens.errors import DermlensError, StorageError, UsageError, WeightsError
from dermlens.files import write_csv, write_text
from dermlens.networks.efficientnet import backbone
from dermlens.reporting.plots import KEPT_BY
from dermlens.training.device import check_memory, fit_batch, out_of_memory, resolve, set_up
from dermlens.training.features import Engine, local_engine
from dermlens.training.material import Material, check_lineage, prepare
from dermlens.training.network import add_head, open_backbone
from dermlens.training.recipe import FREE, Recipe
from dermlens.tuning.space import Range, defaults, space
from dermlens.tuning.trial import WORDS, Bench, Interrupted, Outcome, Trials, folds_of, train_and_select

DATABASE, BEST, TABLE = "study.db", "recipe.toml", "trials.csv"
STARTUP_TRIALS = 4  # none is ended before so many trials, nor in the first half of its first fold: slow rates rise late
STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "lost": TrialState.FAIL,
}
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Limits:
    """How long to search: `trials` in all, those of earlier calls among them; `timeout_s` of this call."""

    trials: int = 20
    timeout_s: float | None = None
    folds: int = 3


class _OutOfTime(Exception):
    """The time is over; the trial in progress does not count."""


def tune(
    dataset: Dataset,
    out: Path,
    recipe: Recipe,
    given: Mapping[str, Any],
    limits: Limits,
    *,
    allow_leakage: bool = False,
    reading: Sequence[str] = (),
    console: Console,
    parallel: Trials | None = None,
    engine: Engine = local_engine,
) -> bool:
    """Search, and leave `recipe.toml`, `trials.csv` and `study.db` in `out`; a search that is there is continued.

    Args:
        given: the settings that the user gave; they stay fixed and are written to `recipe.toml`.
        parallel: tries recipes side by side; one after the other in this process when None.
        engine: computes trunk features.
        reading: the options that the data was read with, such as `("--task", "isic2019")`; `train` needs them too.

    Returns:
        Whether all trials were done or the time ran out; False after Ctrl-C.

    Raises:
        UsageError: `out` holds a search over other images, settings or folds, or files of no search that would be
        overwritten. LeakageError, DataError, RecipeError, WeightsError, StorageError: as in a training.
    """
    _check_place(out)
    set_up(recipe, console)
    asked, recipe = recipe, resolve(recipe, backbone(recipe.backbone))
    varied = space(recipe, backbone(recipe.backbone), given)
    stem = open_backbone(recipe)
    material = prepare(dataset, recipe, allow_leakage=allow_leakage, console=console)
    material, _ = check_lineage(stem.weights, material, allow_leakage=allow_leakage, console=console)
    material = train_and_select(material)
    key = _key(replace(recipe, batch_size=asked.batch_size), stem.weights_id, material, varied, limits.folds)
    try:
        out.mkdir(parents=True, exist_ok=True)
        study = _open_study(out, key, recipe, parallel is not None)
        if parallel is None and len(study.get_trials(deepcopy=False, states=ENDED)) < limits.trials:
            recipe = _choose_batch(study, recipe, asked, _cuts(recipe, varied), len(material.codes), console)
        study.set_user_attr("key", key)
        bench = Bench(material, folds_of(material, limits.folds, recipe.seed), out, console, engine=engine)
        return _Search(study, bench, recipe, given, varied, limits, out, console, reading, parallel).run()
    except (OSError, optuna.exceptions.StorageInternalError) as error:
        raise StorageError(
            f"The search could not be saved in {out}: {getattr(error, 'strerror', None) or error}.",
            remedy="Free some space or choose another --out; the trials saved there stay.",
        ) from error


def _check_place(out: Path) -> None:
    """Refuse a folder whose files have the names of the results and come from no search."""
    there = [name for name in (BEST, TABLE, DATABASE) if os.path.exists(out / name)]  # False where it may not be read
    if there and DATABASE not in there:
        raise UsageError(
            f"{out / there[0]} already exists, and {out} holds no search ({DATABASE}).",
            remedy="Choose another --out, or move the file away.",
            code="not_a_search",
        )


def _key(recipe: Recipe, weights_id: str, material: Material, varied: Mapping[str, Range], folds: int) -> str:
    facts = [
        {k: v for k, v in recipe.as_dict().items() if k not in ("threads", "precision", *FREE)},
        weights_id,
        {name: values.as_dict() for name, values in varied.items()},
        folds,
        KEPT_BY,
        list(zip(material.hashes, material.roles.tolist(), material.labels.tolist(), strict=True)),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _cuts(recipe: Recipe, varied: Mapping[str, Range]) -> tuple[int, ...]:
    return varied["cut_block"].choices if "cut_block" in varied else (recipe.cut_block,)


def _choose_batch(
    study: Any, recipe: Recipe, asked: Recipe, cuts: Sequence[int], classes: int, console: Console
) -> Recipe:
    """Return the recipe with a batch that fits with the lowest cut, which trains most; later calls keep it.

    For trials in this process only: what a Ray worker's memory holds is not known here.
    """
    earlier = study.user_attrs.get("batch_size")
    lowest = replace(recipe, cut_block=min(cuts), batch_size=earlier or recipe.batch_size)
    model = add_head(open_backbone(lowest), lowest, classes).last_stage(lowest.fine_tune)
    if earlier or asked.batch_size:
        check_memory(model, lowest, begun=bool(earlier))
    else:
        lowest = fit_batch(model, lowest, console)
        study.set_user_attr("batch_size", lowest.batch_size)
    return replace(recipe, batch_size=lowest.batch_size)


def _open_study(out: Path, key: str, recipe: Recipe, parallel: bool) -> Any:
    """Open the study in the folder, or make it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(out / DATABASE).resolve()}")
    half = max(1, (recipe.head_epochs if recipe.fine_tune == "head" else recipe.epochs) // 2)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=half)
    study = optuna.create_study(
        storage=storage, study_name="dermlens", direction="maximize", pruner=pruner, load_if_exists=True
    )
    if study.user_attrs.get("key") not in (None, key) and study.get_trials(deepcopy=False):
        raise UsageError(
            f"{out} holds a search over other images, settings, weights or folds.",
            remedy="Choose another --out, or give the data and settings of that search to continue it.",
            code="another_search",
        )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # of a process that was killed
        study.tell(trial.number, state=TrialState.FAIL)
    # Another seed for each call: the same one would propose again what an earlier call has tried.
    study.sampler = optuna.samplers.TPESampler(
        seed=recipe.seed + len(study.trials), n_startup_trials=6, constant_liar=parallel
    )
    return study


@dataclass
class _Search:
    """One call: what it varies, where it writes, when it began."""

    study: Any
    bench: Bench
    recipe: Recipe
    given: Mapping[str, Any]
    varied: dict[str, Range]
    limits: Limits
    out: Path
    console: Console
    reading: Sequence[str]
    parallel: Trials | None = None
    begun: float = field(default_factory=time.monotonic)

    def run(self) -> bool:
        """Try recipes until the limits are reached; False where Ctrl-C ended it."""
        study, total = self.study, self.limits.trials
        states = (*ENDED, TrialState.WAITING)
        if not any(trial.user_attrs.get("own") for trial in study.get_trials(deepcopy=False, states=states)):
            study.enqueue_trial(defaults(self.recipe, self.varied), user_attrs={"own": True})
        self.say(
            f"Varied: {', '.join(self.varied)}. Each trial trains {len(self.bench.folds)} times, on the "
            f"{len(self.bench.material.records)} train and select images; the test is not used."
        )
        if done := len(self.ended()):
            self.say(f"Continuing after {done} trials.")
        whole = True
        try:
            if self.parallel is not None and len(self.ended()) < total:
                self.prepare()
            while whole and len(self.ended()) < total and not self.late():
                whole = self.try_one() if self.parallel is None else self.try_several(self.parallel)
                self.save()
        except KeyboardInterrupt:
            whole = False
        self.print_end(whole)
        return whole

    def late(self) -> bool:
        return self.limits.timeout_s is not None and time.monotonic() - self.begun >= self.limits.timeout_s

    def ended(self) -> list[Any]:
        return list(self.study.get_trials(deepcopy=False, states=ENDED))

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def ask(self) -> tuple[Any, dict[str, Any], Recipe]:
        """Return the next trial, what is varied in it, and its recipe."""
        trial = self.study.ask()
        values: dict[str, Any] = {name: one.suggest(trial, name) for name, one in self.varied.items()}
        return trial, values, resolve(replace(self.recipe, **values), backbone(self.recipe.backbone))

    def prepare(self) -> None:
        """Compute embeddings and the trunk features of every cut, which all workers read and none may write."""
        for cut in _cuts(self.recipe, self.varied):
            recipe = replace(self.recipe, cut_block=cut)
            self.bench.prepare(resolve(recipe, backbone(recipe.backbone)))

    def try_one(self) -> bool:
        """Try one recipe in this process; False where Ctrl-C ended it."""
        trial, values, recipe = self.ask()
        began = time.monotonic()

        def report(epoch: int, score: float) -> None:
            trial.report(score, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
            if self.late():
                raise _OutOfTime

        outcome = Outcome("lost")
        try:
            outcome = Outcome("complete", self.bench.score(recipe, report))
        except optuna.TrialPruned:
            outcome = Outcome("pruned")
        except WeightsError as error:
            if error.code != "diverged":
                raise
            outcome = Outcome("diverged")
        except Interrupted:
            return False
        except _OutOfTime:  # the caller's loop ends by the clock
            return True
        except tf.errors.ResourceExhaustedError as error:
            raise out_of_memory(recipe) from error
        finally:
            self.note(trial, replace(outcome, seconds=time.monotonic() - began))
        self.print_trial(trial.number, values, outcome)
        return True

    def try_several(self, parallel: Trials) -> bool:
        """Try as many recipes as are still to do, side by side."""
        running: dict[int, tuple[Any, dict[str, Any]]] = {}
        reported: set[tuple[int, int]] = set()  # a trial that starts again on another worker reports the same again
        before, lost = len(self.ended()), 0

        def recipes() -> Iterator[tuple[int, Recipe]]:
            for _ in range(self.limits.trials - before):
                trial, values, recipe = self.ask()
                running[trial.number] = trial, values
                yield trial.number, recipe

        def on_epoch(number: int, epoch: int, score: float) -> bool:
            if number not in running:  # its last report came after its end
                return True
            trial = running[number][0]
            if (number, epoch) not in reported:
                reported.add((number, epoch))
                trial.report(score, epoch)
            return bool(trial.should_prune())

        try:
            with closing(parallel(self.bench, recipes(), on_epoch, self.late)) as outcomes:
                for number, outcome in outcomes:
                    trial, values = running.pop(number)
                    self.note(trial, outcome)
                    lost += outcome.how == "lost"
                    self.print_trial(number, values, outcome)
                    self.save()
        finally:
            for trial, _ in running.values():
                self.study.tell(trial, state=TrialState.FAIL)
        if lost and len(self.ended()) == before:
            raise DermlensError(
                f"Every trial ended its worker, {lost} in all.",
                remedy="Give the workers more memory, or use fewer with --workers; the same command continues.",
                code="worker_died",
            )
        return True

    def note(self, trial: Any, outcome: Outcome) -> None:
        trial.set_user_attr("seconds", round(outcome.seconds, 1))
        self.study.tell(trial, outcome.score, state=STATES[outcome.how], skip_if_finished=True)

    def best(self) -> Any | None:
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return max(complete, key=lambda trial: trial.value, default=None)

    def save(self) -> None:
        """Write the best recipe so far and the table of trials."""
        best = self.best()
        if best is not None:
            lines = [
                f"# dermlens tune: trial {best.number}, the best of {len(self.ended())}.",
                f"# Balanced accuracy {best.value:.4f} on the images it was chosen on, so too good. The test of",
                "# `dermlens train --recipe` with this file shows what it is worth.",
                *(f"{name} = {json.dumps(value)}" for name, value in self.settings(best).items()),
            ]
            write_text(self.out / BEST, "\n".join(lines) + "\n")
        rows: list[list[object]] = [["trial", "state", "balanced_accuracy", "epochs", "seconds", *self.varied]]
        for trial in self.study.get_trials(deepcopy=False):
            score = f"{trial.value:.6f}" if trial.state is TrialState.COMPLETE else ""
            seconds, epochs = trial.user_attrs.get("seconds", ""), len(trial.intermediate_values)
            values = [trial.params.get(name, "") for name in self.varied]
            rows.append([trial.number, trial.state.name.lower(), score, epochs, seconds, *values])
        write_csv(self.out / TABLE, rows)

    def settings(self, trial: Any) -> dict[str, Any]:
        """Return the recipe file: the split, which keeps the test unseen, what was given, mode, batch, the trial."""
        values = {name: trial.params[name] for name in self.varied}
        rounded = {name: float(f"{v:.3g}") if isinstance(v, float) else v for name, v in values.items()}
        given = {name: value for name, value in self.given.items() if name != "schema"}
        split = {"seed": self.recipe.seed, **self.recipe.fractions}
        fixed = {"fine_tune": self.recipe.fine_tune, "batch_size": self.recipe.batch_size}
        return {**split, **given, **fixed, **rounded}

    def print_trial(self, number: int, values: Mapping[str, Any], outcome: Outcome) -> None:
        own = " (the recipe as it is)" if number == 0 else ""
        words = WORDS[outcome.how] if outcome.score is None else f"{outcome.score:.3f}"
        self.say(f"Trial {number}{own}: {words}; {', '.join(f'{name} {value:g}' for name, value in values.items())}")

    def print_end(self, whole: bool) -> None:
        best, ended = self.best(), self.ended()
        stopped = "" if whole else "Stopped. "
        if best is None:
            self.say(f"{stopped}No trial was finished yet; the same command continues the search.")
            return
        own = next((t.value for t in ended if t.user_attrs.get("own") and t.state is TrialState.COMPLETE), None)
        against = "" if own is None else f", the recipe as it is {own:.3f}"
        pruned = sum(trial.state is TrialState.PRUNED for trial in ended)
        self.say(
            f"{stopped}{len(ended)} trials, {pruned} ended early. Best: trial {best.number} with {best.value:.3f}"
            f"{against} (balanced accuracy on the images it was chosen on, so too good)."
        )
        more = "" if len(ended) >= self.limits.trials else " The same command continues the search."
        command = shlex.join(["--recipe", str(self.out / BEST), *self.reading])
        self.say(f"Train with it: dermlens train DATA --out RUN {command}{more}")
