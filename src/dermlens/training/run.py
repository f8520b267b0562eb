"""A folder of labelled images becomes a model.

audit -> split -> probe -> head -> fine-tune -> export -> calibrate -> test -> bundle

A run that stops goes on where it was: the trunk cache continues at its image, the training at its step, and a finished
training is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from dermlens.data.records import Dataset
from dermlens.errors import DermlensError, StorageError, UsageError
from dermlens.training.assess import About, Candidate, finish
from dermlens.training.backbones import backbone
from dermlens.training.checkpoint import EVERY_S, Checkpoint
from dermlens.training.device import check_memory, out_of_memory, resolve, set_up
from dermlens.training.export import compile_graph, to_openvino
from dermlens.training.feed import Feed, from_arrays, from_images
from dermlens.training.fit import History, Stage, fit
from dermlens.training.lineage import check_lineage
from dermlens.training.material import Material, prepare
from dermlens.training.memory import keep_freed_memory
from dermlens.training.network import Network, Stem, in_float32, open_backbone, trainable_millions, with_head
from dermlens.training.outputs import load_keras, save_keras, seen_by_role, write_audit, write_split
from dermlens.training.pipeline import AUGMENTATION_VERSION
from dermlens.training.probe import Probe, fit_probe
from dermlens.training.recipe import Recipe
from dermlens.training.split import ROLES
from dermlens.training.trunk import BATCH, plain_outputs, trunk_cache
from dermlens.training.watch import Watch

__all__ = ["About", "train"]

STATE = "state.json"


@dataclass(frozen=True)
class _Run:
    """What every step of one run needs."""

    out: Path
    recipe: Recipe
    stem: Stem
    network: Network
    material: Material
    key: str
    console: Console
    checkpoint_every_s: float


def train(
    dataset: Dataset,
    out: Path,
    recipe: Recipe,
    about: About,
    *,
    allow_leakage: bool = False,
    resume: bool = False,
    console: Console | None = None,
    isic_ids_of_lesion: Mapping[str, Sequence[str]] | None = None,
    checkpoint_every_s: float = EVERY_S,
) -> Path:
    """Train a model and return its bundle folder, `out/bundle`.

    Args:
        dataset: from `read_dataset`; roles already set in its records are kept.
        out: the run folder; what an interrupted run of the same recipe and data left there is used.
        allow_leakage: train although pictures or lesions cross the split; the bundle is marked leaky.
        resume: refuse to begin anew: the folder must hold a run of exactly these images, weights and settings.
        isic_ids_of_lesion: other ISIC ids of the same lesions, so that they count as seen as well.
        checkpoint_every_s: shortest time between two checkpoints of the training.

    Raises:
        LeakageError, DataError, RecipeError, WeightsError, StorageError, UsageError: with the remedy.
    """
    console = console or Console(stderr=True)
    started = time.monotonic()
    keep_freed_memory()
    recipe = resolve(recipe, backbone(recipe.backbone))
    set_up(recipe, console)
    stem = open_backbone(recipe)
    material = prepare(dataset, recipe, allow_leakage=allow_leakage, console=console)
    material, known = check_lineage(stem.weights, material, allow_leakage=allow_leakage, console=console)
    seen = {**seen_by_role(material, isic_ids_of_lesion or {}), **known}
    key = _key(recipe, stem, material)
    state = _state(out)
    if resume and state.get("key") != key:
        raise _another_run(out, state)
    tuned = _tuned_before(out, key, state)
    if resume and tuned is not None and (out / "bundle" / "bundle.json").is_file():
        console.print(f"This run is finished; its model is in {out / 'bundle'}.", highlight=False)
        return out / "bundle"
    _prepare_folder(out, recipe, material, seen, key, fresh=tuned is None)
    network = with_head(stem, recipe, len(material.codes))
    run = _Run(out, recipe, stem, network, material, key, console, checkpoint_every_s)
    console.print(_plan(run), highlight=False, soft_wrap=True)
    check_memory(_trained(run), recipe)
    probe, probe_test, frozen, spread = _probe(run)
    if tuned is None:
        try:
            history = _tune(run, frozen, spread)
        except tf.errors.ResourceExhaustedError as error:
            raise out_of_memory(recipe) from error
        whole = network.whole
        _keep_tuned(run, history)
    else:
        console.print("The training had been finished before; going on from its model.", highlight=False)
        history, whole = tuned
    candidate = Candidate(whole, stem, recipe, material, history, probe, probe_test, seen)
    try:
        return finish(candidate, out, about, dataset, started=started, console=console)
    except KeyboardInterrupt:
        console.print("Stopped before the bundle was written; the same command goes on from the tuned model.")
        raise


def _plan(run: _Run) -> str:
    recipe, row = run.recipe, run.stem.row
    what = {
        "head": "the last layer is trained",
        "top": f"blocks {recipe.cut_block + 1} to {row.blocks} are trained over cached features",
        "full": "the whole network is trained on fresh views",
    }[recipe.fine_tune]
    return (
        f"{row.title} at {recipe.size_px} px from {_started_from(run.stem)}; {what} "
        f"({trainable_millions(_trained(run)):.2f} M parameters, batch norm {recipe.batch_norm}, {recipe.precision}, "
        f"{recipe.threads} threads)."
    )


def _started_from(stem: Stem) -> str:
    words = {"none": "random weights", "lite": "ImageNet weights (lite)", "imagenet": "ImageNet weights (Keras)"}
    return words.get(stem.weights, f"the weights in {stem.weights}")


def _trained(run: _Run) -> keras.Model:
    """The model that the last stage trains."""
    return {"head": run.network.head, "top": run.network.classifier, "full": run.network.whole}[run.recipe.fine_tune]


def _key(recipe: Recipe, stem: Stem, material: Material) -> str:
    """Identify all that decides about the tuned weights."""
    facts = [
        recipe.as_dict(),
        stem.weights_id,
        stem.spec.fingerprint(),
        AUGMENTATION_VERSION,
        [version(package) for package in ("keras", "tensorflow", "openvino", "numpy")],
        list(zip(material.hashes, material.roles.tolist(), material.labels.tolist(), strict=True)),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _state(out: Path) -> dict[str, Any]:
    """Read which run stands in the folder, and its history if it was trained to its end; empty where there is none."""
    try:
        state = json.loads((out / STATE).read_text(encoding="utf-8"))
        return state if isinstance(state, dict) else {}
    except (OSError, ValueError):
        return {}


def _another_run(out: Path, state: Mapping[str, Any]) -> UsageError:
    what = "of other images, weights, settings or package versions" if state else "that could be resumed"
    return UsageError(
        f"--resume found {'a run' if state else 'no run'} in {out} {what}.",
        remedy="Give the same data and leave the settings out (they are read from the run), or start without --resume.",
        code="nothing_to_resume",
    )


def _tuned_before(out: Path, key: str, state: Mapping[str, Any]) -> tuple[History, keras.Model] | None:
    """Return history and model of a finished training of exactly this run, if there is one."""
    try:
        if state.get("key") != key or not state.get("history"):
            return None
        return History(**state["history"]), load_keras(out)
    except (OSError, ValueError, KeyError, TypeError, DermlensError):
        return None


def _prepare_folder(
    out: Path,
    recipe: Recipe,
    material: Material,
    seen: Mapping[str, Mapping[str, list[str]]],
    key: str,
    *,
    fresh: bool,
) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if fresh:
            (out / "model.keras").unlink(missing_ok=True)
            (out / STATE).write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
        recipe.save(out / "recipe.json")
        write_split(out / "split.csv", material)
        write_audit(out / "audit.json", material)
        (out / "seen.json").write_text(json.dumps(seen, separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"The run folder {out} cannot be written: {error.strerror or error}.",
            remedy="Choose another --out, or free some space.",
        ) from error


def _probe(run: _Run) -> tuple[Probe, np.ndarray, Feed, float]:
    """Fit the linear probe.

    Returns:
        The probe, its probabilities on test, the frozen embeddings that the head learns from, and their spread.
    """
    material = run.material
    with in_float32(run.network.whole, run.recipe.precision):
        compiled = compile_graph(to_openvino(run.network.whole), batch=BATCH)
    embeddings = plain_outputs(
        compiled, material.records, run.stem.spec, output=1, console=run.console, what="Frozen features"
    )
    parts = {role: (embeddings[material.rows(role)], material.labels[material.rows(role)]) for role in ROLES}
    run.console.print("Fitting the linear probe ...", highlight=False)
    fitted = fit_probe(parts["train"], parts["select"], len(material.codes))
    frozen = from_arrays(parts["train"][0][:, None], parts["train"][1], *parts["select"])
    spread = float(parts["train"][0].std())
    return fitted, fitted.probabilities(parts["test"][0]), frozen, spread


def _tune(run: _Run, frozen: Feed, spread: float) -> History:
    """Train the head, and the blocks that the mode says; goes on from a checkpoint of this run."""
    recipe, codes = run.recipe, run.material.codes
    watch = Watch(run.console, codes, run.out / "logs", brief=() if recipe.fine_tune == "head" else ("head",))
    checkpoint = Checkpoint(run.out / "checkpoint.npz", run.key, run.console, run.checkpoint_every_s)
    saved = checkpoint.load()
    if saved is None or saved.stage == "head":
        history = fit(run.network.head, frozen, _head_stage(recipe, spread), recipe, codes, watch, checkpoint, saved)
        saved = None
        if recipe.fine_tune == "head" or history.interrupted or not recipe.epochs:
            return _told(history, run.console)
    feed = _cached(run) if recipe.fine_tune == "top" else _fresh(run)
    stage = Stage("tune", recipe.epochs, recipe.learning_rate, recipe.mixup, salt=1, patience=recipe.patience)
    return _told(fit(_trained(run), feed, stage, recipe, codes, watch, checkpoint, saved), run.console)


def _head_stage(recipe: Recipe, spread: float) -> Stage:
    """Features of large spread need a smaller rate."""
    patience = recipe.patience if recipe.fine_tune == "head" else 0
    rate = recipe.head_learning_rate / max(1.0, spread)
    return Stage("head", recipe.head_epochs, rate, mixup=0.0, salt=0, patience=patience)


def _cached(run: _Run) -> Feed:
    """Trunk features of several views of the training images, and of the plain select images, computed once."""
    with in_float32(run.network.trunk, run.recipe.precision):
        trunk = to_openvino(run.network.trunk)
    cached = {}
    for role, views in (("train", run.recipe.views), ("select", 0)):
        rows = run.material.rows(role)
        cached[role] = trunk_cache(
            run.out / "cache" / role,
            trunk,
            run.material.pick(rows),
            [run.material.hashes[i] for i in rows],
            run.stem.spec,
            view_count=views,
            seed=run.recipe.seed,
            weights_id=run.stem.weights_id,
            console=run.console,
            what=f"Trunk features, {role}",
        )
    train, select = run.material.rows("train"), run.material.rows("select")
    return from_arrays(cached["train"], run.material.labels[train], cached["select"][:, 0], run.material.labels[select])


def _fresh(run: _Run) -> Feed:
    material = run.material
    train, select = material.rows("train"), material.rows("select")
    return from_images(
        material.pick(train),
        [material.hashes[i] for i in train],
        material.labels[train],
        material.pick(select),
        material.labels[select],
        run.stem.spec,
        seed=run.recipe.seed,
    )


def _told(history: History, console: Console) -> History:
    if history.interrupted:
        console.print(
            f"Stopped by Ctrl-C; keeping the best model so far (epoch {history.best_epoch}). Export, calibration and "
            "test follow; a second Ctrl-C ends without a bundle. The same command with --resume trains on.",
            soft_wrap=True,
        )
    if history.stopped:
        console.print(f"Early stopping: {history.stopped}.", highlight=False, soft_wrap=True)
    better = "" if history.best_epoch else ": training did not improve on where it started (epoch 0)"
    console.print(f"Kept epoch {history.best_epoch}{better}.", highlight=False)
    return history


def _keep_tuned(run: _Run, history: History) -> None:
    """Keep the whole model, and mark the training as finished unless Ctrl-C ended it."""
    try:
        with in_float32(run.network.whole, run.recipe.precision):
            save_keras(run.network.whole, run.out / "model.keras")
        if history.interrupted:
            return
        state = {"key": run.key, "history": asdict(history)}
        (run.out / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
        (run.out / "checkpoint.npz").unlink(missing_ok=True)
    except (OSError, StorageError) as error:
        run.console.print(f"Warning: the tuned model could not be kept in {run.out}: {error}", highlight=False)
