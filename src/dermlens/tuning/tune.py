"""A search for a better recipe: Optuna proposes, `trial.py` tries, hopeless trials end early, SQLite keeps it all.

The first trial is the recipe as it is, so the result is never worse than it on what the search looks at: the train and
select roles. The best of many trials scores too well there, since it was chosen for that; what it is worth is what
`dermlens train --recipe` then finds on its test, at which the search never looks.
"""

from __future__ import annotations

import csv
import hashlib
import io
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
from dermlens.files import write_text
from dermlens.networks.backend import keep_freed_memory
from dermlens.networks.efficientnet import backbone
from dermlens.reporting.plots import KEPT_BY
from dermlens.training.batch_memory import out_of_memory
from dermlens.training.device import resolve, set_up
from dermlens.training.features import Engine, local
from dermlens.training.material import Material, check_lineage, prepare
from dermlens.training.network import open_backbone
from dermlens.training.recipe import Recipe
from dermlens.tuning.space import Range, defaults, space
from dermlens.tuning.trial import WORDS, Bench, Interrupted, Trials, folds_of, learnable

DATABASE, BEST, TABLE = "study.db", "recipe.toml", "trials.csv"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
STARTUP_TRIALS = 4  # none is ended before so many trials, nor in the first half of its first fold: slow rates rise late


@dataclass(frozen=True)
class Limits:
    """How long to search: `trials` in all, those of earlier calls among them; `timeout_s` of this call."""

    trials: int = 20
    timeout_s: float | None = None
    folds: int = 3


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

    def late(self) -> bool:
        return self.limits.timeout_s is not None and time.monotonic() - self.begun >= self.limits.timeout_s

    def ended(self) -> list[Any]:
        return list(self.study.get_trials(deepcopy=False, states=ENDED))


class _Late(Exception):
    """The time is over; the trial that is under way counts for nothing."""


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
    engine: Engine = local,
) -> bool:
    """Search, and leave `recipe.toml`, `trials.csv` and `study.db` in `out`; go on with the search that is there.

    Args:
        given: the settings that a person gave; they are fixed and stand in `recipe.toml`.
        parallel: tries recipes side by side; one after the other in this process when None.
        engine: who computes trunk features.
        reading: the options that the data was read with, such as `("--task", "isic2019")`; `train` needs them too.

    Returns:
        Whether the wanted trials or the time ran out; False after Ctrl-C.

    Raises:
        UsageError: `out` holds a search over other images, settings or folds, or files of no search that would be
        overwritten. LeakageError, DataError, RecipeError,
        WeightsError, StorageError: as in a training.
    """
    _check_place(out)
    keep_freed_memory()
    set_up(recipe, console)
    recipe = resolve(recipe, backbone(recipe.backbone))
    varied = space(recipe, backbone(recipe.backbone), given)
    stem = open_backbone(recipe)
    material = prepare(dataset, recipe, allow_leakage=allow_leakage, console=console)
    material, _ = check_lineage(stem.weights, material, allow_leakage=allow_leakage, console=console)
    material = learnable(material)
    folds = folds_of(material, limits.folds, recipe.seed)
    key = _key(recipe, stem.weights_id, material, varied, limits.folds)
    try:
        out.mkdir(parents=True, exist_ok=True)
        search = _Search(
            _study(out, key, recipe, parallel is not None),
            Bench(material, folds, out, console, engine=engine),
            recipe,
            given,
            varied,
            limits,
            out,
            console,
            reading,
            parallel,
        )
        return _run(search)
    except (OSError, optuna.exceptions.StorageInternalError) as error:
        raise StorageError(
            f"The search could not be kept in {out}: {getattr(error, 'strerror', None) or error}.",
            remedy="Free some space or choose another --out; the trials that are kept there stay.",
        ) from error


def _check_place(out: Path) -> None:
    """Refuse a folder whose files have the names of the results and come from no search."""
    there = [name for name in (BEST, TABLE, DATABASE) if os.path.exists(out / name)]  # False where it may not be read
    if there and DATABASE not in there:
        raise UsageError(
            f"{out / there[0]} stands there already, and {out} holds no search ({DATABASE}).",
            remedy="Choose another --out, or move the file away.",
            code="not_a_search",
        )


def _key(recipe: Recipe, weights_id: str, material: Material, varied: Mapping[str, Range], folds: int) -> str:
    facts = [
        {k: v for k, v in recipe.as_dict().items() if k not in ("threads", "precision", "devices")},
        weights_id,
        {name: values.as_dict() for name, values in varied.items()},
        folds,
        KEPT_BY,
        list(zip(material.hashes, material.roles.tolist(), material.labels.tolist(), strict=True)),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _study(out: Path, key: str, recipe: Recipe, parallel: bool) -> Any:
    """Open the study in the folder, or make it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(out / DATABASE).resolve()}")
    half = max(1, (recipe.head_epochs if recipe.fine_tune == "head" else recipe.epochs) // 2)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=half)
    study = optuna.create_study(
        storage=storage, study_name="dermlens", direction="maximize", pruner=pruner, load_if_exists=True
    )
    there = study.user_attrs.get("key")
    if there not in (None, key):
        raise UsageError(
            f"{out} holds a search over other images, settings, weights or folds.",
            remedy="Choose another --out, or give the data and settings of that search to go on with it.",
            code="another_search",
        )
    study.set_user_attr("key", key)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # of a process that was killed
        study.tell(trial.number, state=TrialState.FAIL)
    # Another seed for each call: the same one would propose again what a call before has tried.
    study.sampler = optuna.samplers.TPESampler(
        seed=recipe.seed + len(study.trials), n_startup_trials=6, constant_liar=parallel
    )
    return study


def _run(search: _Search) -> bool:
    wanted, study = search.limits.trials, search.study
    states = (*ENDED, TrialState.WAITING)
    if not any(trial.user_attrs.get("own") for trial in study.get_trials(deepcopy=False, states=states)):
        study.enqueue_trial(defaults(search.recipe, search.varied), user_attrs={"own": True})
    _told(search)
    if search.parallel is not None and len(search.ended()) < wanted:
        _prepare(search)
    whole = True
    try:
        while len(search.ended()) < wanted and not search.late() and whole:
            whole = _one(search) if search.parallel is None else _several(search, search.parallel)
            _keep(search)
    except KeyboardInterrupt:
        whole = False
    _close(search, whole)
    return whole


def _told(search: _Search) -> None:
    done, console = len(search.ended()), search.console
    varied = ", ".join(search.varied)
    console.print(
        f"Varied: {varied}. Each trial learns {len(search.bench.folds)} times from the train and select images, "
        f"{len(search.bench.material.records)} in all; the test is not looked at.",
        highlight=False,
        soft_wrap=True,
    )
    if done:
        console.print(f"Going on after {done} trials.", highlight=False)


def _ask(search: _Search) -> tuple[Any, dict[str, Any], Recipe]:
    """Return the next trial, what is varied in it, and its recipe."""
    trial = search.study.ask()
    found: dict[str, Any] = {name: values.suggest(trial, name) for name, values in search.varied.items()}
    return trial, found, resolve(replace(search.recipe, **found), backbone(search.recipe.backbone))


def _prepare(search: _Search) -> None:
    """Compute embeddings and the trunk features of every cut, which all workers read and none may write."""
    cuts = search.varied["cut_block"].choices if "cut_block" in search.varied else (search.recipe.cut_block,)
    for cut in cuts:
        recipe = replace(search.recipe, cut_block=cut)
        search.bench.prepare(resolve(recipe, backbone(recipe.backbone)))


def _several(search: _Search, parallel: Trials) -> bool:
    """Try as many recipes as are still wanted, side by side."""
    begun: dict[int, tuple[Any, dict[str, Any]]] = {}
    reported: set[tuple[int, int]] = set()  # a trial that begins again on another worker says the same again
    before = len(search.ended())

    def asked() -> Iterator[tuple[int, Recipe]]:
        for _ in range(search.limits.trials - before):
            trial, found, recipe = _ask(search)
            begun[trial.number] = trial, found
            yield trial.number, recipe

    def heard(number: int, epoch: int, score: float) -> bool:
        if number not in begun:  # its last words came after its end
            return True
        trial = begun[number][0]
        if (number, epoch) not in reported:
            reported.add((number, epoch))
            trial.report(score, epoch)
        return bool(trial.should_prune())

    lost = 0
    try:
        with closing(parallel(search.bench, asked(), heard, search.late)) as done:
            for number, end in done:
                trial, found = begun.pop(number)
                trial.set_user_attr("seconds", round(end.seconds, 1))
                search.study.tell(trial, end.score, state=_STATES[end.how])
                lost += end.how == "lost"
                _say(search, number, found, end.words)
                _keep(search)
    finally:
        for trial, _ in begun.values():
            search.study.tell(trial, state=TrialState.FAIL)
    if lost and len(search.ended()) == before:
        raise DermlensError(
            f"Every trial ended its worker, {lost} in all.",
            remedy="Give the workers more memory, or fewer of them with --workers; the same command goes on.",
            code="worker_died",
        )
    return True


_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "lost": TrialState.FAIL,
}


def _say(search: _Search, number: int, found: Mapping[str, Any], words: str) -> None:
    own = " (the recipe as it is)" if number == 0 else ""
    values = ", ".join(f"{name} {value:g}" for name, value in found.items())
    search.console.print(f"Trial {number}{own}: {words}; {values}", highlight=False, soft_wrap=True)


def _one(search: _Search) -> bool:
    """Try one recipe; False where Ctrl-C ended it."""
    trial, found, recipe = _ask(search)
    began = time.monotonic()

    def report(epoch: int, score: float) -> None:
        trial.report(score, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
        if search.late():
            raise _Late

    state, score, words = TrialState.FAIL, None, ""
    try:
        score = search.bench.score(recipe, report)
        state, words = TrialState.COMPLETE, f"{score:.3f}"
    except optuna.TrialPruned:
        state, words = TrialState.PRUNED, WORDS["pruned"]
    except WeightsError as error:
        if error.code != "diverged":
            raise
        state, words = TrialState.PRUNED, WORDS["diverged"]
    except Interrupted:
        return False
    except _Late:  # the caller's loop ends by the clock
        return True
    except tf.errors.ResourceExhaustedError as error:
        raise out_of_memory(recipe) from error
    finally:
        trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
        search.study.tell(trial, score, state=state, skip_if_finished=True)
    _say(search, trial.number, found, words)
    return True


def _best(search: _Search) -> Any | None:
    complete = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: trial.value, default=None)


def _settings(search: _Search, trial: Any) -> dict[str, Any]:
    """Return what the recipe file says: the split, which keeps the test unseen, what was given, the mode, the trial."""
    found = {name: trial.params[name] for name in search.varied}
    rounded = {name: float(f"{v:.3g}") if isinstance(v, float) else v for name, v in found.items()}
    given = {name: value for name, value in search.given.items() if name != "schema"}
    split = {"seed": search.recipe.seed, **search.recipe.fractions}
    return {**split, **given, "fine_tune": search.recipe.fine_tune, **rounded}


def _keep(search: _Search) -> None:
    """Write the best recipe so far and the table of trials."""
    best = _best(search)
    if best is not None:
        lines = [f"{name} = {json.dumps(value)}" for name, value in _settings(search, best).items()]
        head = [
            f"# dermlens tune: trial {best.number}, the best of {len(search.ended())}.",
            f"# Balanced accuracy {best.value:.4f} on the images it was chosen on: too good by the choosing. The test",
            "# of `dermlens train --recipe` on this file says what it is worth.",
        ]
        write_text(search.out / BEST, "\n".join([*head, *lines]) + "\n")
    write_text(search.out / TABLE, _table(search))


def _table(search: _Search) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "balanced_accuracy", "epochs", "seconds", *search.varied])
    for trial in search.study.get_trials(deepcopy=False):
        values = [trial.params.get(name, "") for name in search.varied]
        score = "" if trial.value is None or trial.state is not TrialState.COMPLETE else f"{trial.value:.6f}"
        seconds = trial.user_attrs.get("seconds", "")
        writer.writerow(
            [trial.number, trial.state.name.lower(), score, len(trial.intermediate_values), seconds, *values]
        )
    return text.getvalue()


def _close(search: _Search, whole: bool) -> None:
    best, console = _best(search), search.console
    ended = search.ended()
    stopped = "" if whole else "Stopped. "
    if best is None:
        console.print(f"{stopped}No trial was finished yet; the same command goes on.", highlight=False)
        return
    own = next((t.value for t in ended if t.user_attrs.get("own") and t.state is TrialState.COMPLETE), None)
    against = "" if own is None else f", the recipe as it is {own:.3f}"
    pruned = sum(trial.state is TrialState.PRUNED for trial in ended)
    console.print(
        f"{stopped}{len(ended)} trials, {pruned} ended early. Best: trial {best.number} with {best.value:.3f}{against} "
        "(balanced accuracy on the images it was chosen on, so too good).",
        highlight=False,
        soft_wrap=True,
    )
    more = "" if len(ended) >= search.limits.trials else " The same command goes on."
    command = shlex.join(["--recipe", str(search.out / BEST), *search.reading])
    console.print(
        f"Train with it: dermlens train DATA --out RUN {command}{more}", highlight=False, markup=False, soft_wrap=True
    )
