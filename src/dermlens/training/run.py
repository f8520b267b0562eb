"""A folder of labelled images becomes a model.

audit -> split -> probe -> head -> fine-tune -> export -> calibrate -> test -> bundle

A run that stops goes on where it was: the trunk cache continues at its image, the training at its step, and a finished
training is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import openvino as ov
import tensorflow as tf
from rich.console import Console

from dermlens.data.records import Dataset
from dermlens.errors import DermlensError, StorageError, UsageError
from dermlens.inference.runtime import batch_for, compile_graph, run_batches
from dermlens.networks.backend import keep_freed_memory
from dermlens.networks.efficientnet import backbone
from dermlens.networks.openvino import to_openvino
from dermlens.reporting.plots import KEPT_BY
from dermlens.training.batch_memory import check_memory, out_of_memory
from dermlens.training.checkpoint import EVERY_S, Checkpoint
from dermlens.training.device import devices, resolve, set_up
from dermlens.training.features import Engine, Images, Wanted, frozen_outputs, local, trunk_cache
from dermlens.training.feed import EVAL_BATCH, EVAL_BATCH_PIXELS, Feed, from_arrays, from_images
from dermlens.training.finish import About, Candidate, finish
from dermlens.training.fit import History, fine_tuning, fit, head_training
from dermlens.training.material import Material, check_lineage, prepare
from dermlens.training.network import Network, Stem, in_float32, open_backbone, trainable_millions, with_head
from dermlens.training.outputs import load_keras, save_keras, seen_by_role, write_audit, write_split
from dermlens.training.probe import frozen_features
from dermlens.training.recipe import Recipe, read_state, write_state
from dermlens.training.views import AUGMENTATION_VERSION, decoded
from dermlens.training.watch import Watch

__all__ = ["About", "train"]


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
    engine: Engine


def train(
    dataset: Dataset,
    out: Path,
    recipe: Recipe,
    about: About,
    *,
    allow_leakage: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    isic_ids_of_lesion: Mapping[str, Sequence[str]] | None = None,
    checkpoint_every_s: float = EVERY_S,
    engine: Engine | None = None,
) -> Path:
    """Train a model and return its bundle folder, `out/bundle`.

    Args:
        dataset: from `read_dataset`; roles already set in its records are kept.
        out: the run folder; what an interrupted run of the same recipe and data left there is used.
        allow_leakage: train although pictures or lesions cross the split; the bundle is marked leaky.
        resume: refuse to begin anew: the folder must hold a run of exactly these images, weights and settings.
        overwrite: replace another run that stands in the folder.
        isic_ids_of_lesion: other ISIC ids of the same lesions, so that they count as seen as well.
        checkpoint_every_s: shortest time between two checkpoints of the training.
        engine: who computes frozen features, this process when None; what is trained is trained here.

    Raises:
        LeakageError, DataError, RecipeError, WeightsError, StorageError, UsageError: with the remedy.
    """
    console = console or Console(stderr=True)
    started = time.monotonic()
    keep_freed_memory()
    set_up(recipe, console)
    recipe = resolve(recipe, backbone(recipe.backbone))
    stem = open_backbone(recipe)
    material = prepare(dataset, recipe, allow_leakage=allow_leakage, console=console)
    material, known = check_lineage(stem.weights, material, allow_leakage=allow_leakage, console=console)
    seen = {**seen_by_role(material, isic_ids_of_lesion or {}), **known}
    key = _key(recipe, stem, material)
    state = read_state(out)
    if resume and state.get("key") != key:
        raise _nothing_to_resume(out, state)
    if not overwrite:
        _refuse_another_run(out, state, key)
    same = state.get("neighbours") == about.neighbours
    if resume and same and state.get("bundle") and (out / "bundle" / "bundle.json").is_file():
        console.print(f"This run is finished; its model is in {out / 'bundle'}.", highlight=False)
        return out / "bundle"
    tuned = _tuned_before(out, key, state)
    minutes = float(state.get("minutes", 0.0)) if state.get("key") == key else 0.0
    started -= 60 * minutes  # what earlier tries have cost counts, too
    wanted = {"neighbours": about.neighbours}
    begun = {"key": key, "name": about.name, "allow_leakage": allow_leakage, "minutes": minutes, **wanted}
    noted = begun if tuned is None else {**state, **wanted, "bundle": False}
    _prepare_folder(out, recipe, material, seen, noted)
    network = with_head(stem, recipe, len(material.codes))
    run = _Run(out, recipe, stem, network, material, key, console, checkpoint_every_s, engine or local)
    console.print(_plan(run), highlight=False, soft_wrap=True)
    check_memory(_trained(run), recipe)
    frozen = frozen_features(out / "cache" / "frozen.npz", key, material, lambda: _embed(run), console)
    if tuned is None:
        try:
            history = _tune(run, frozen.embeddings)
        except tf.errors.ResourceExhaustedError as error:
            raise out_of_memory(recipe) from error
        whole = network.whole
        _keep_tuned(run, {**begun, "minutes": (time.monotonic() - started) / 60}, history)
    else:
        console.print("The training had been finished before; going on from its model.", highlight=False)
        history, whole = tuned
    probe_test = frozen.probe.probabilities(frozen.embeddings[material.rows("test")])
    candidate = Candidate(whole, stem, recipe, material, history, frozen.probe, probe_test, seen)
    try:
        bundle = finish(candidate, out, about, dataset, started=started, console=console)
        _keep_state(run, {**read_state(out), "bundle": not history.interrupted})
        return bundle
    except KeyboardInterrupt:
        console.print("Stopped before the bundle was written; the same command goes on from the tuned model.")
        raise


def _plan(run: _Run) -> str:
    recipe, row = run.recipe, run.stem.row
    what = {
        "head": "the last layer is trained",
        "top": f"blocks {recipe.cut_block + 1} to {row.blocks} are trained over "
        + (f"cached features of {recipe.views} views" if recipe.views else "features of fresh views"),
        "full": "the whole network is trained on fresh views",
    }[recipe.fine_tune]
    return (
        f"{row.title} at {recipe.size_px} px from {_started_from(run.stem)}; {what} "
        f"({trainable_millions(_trained(run)):.2f} M parameters, batch norm {recipe.batch_norm}, {recipe.precision}, "
        f"{recipe.threads} threads"
        + (f", each batch spread over {recipe.devices} devices)." if recipe.devices > 1 else ").")
    )


def _started_from(stem: Stem) -> str:
    words = {"none": "random weights", "lite": "ImageNet weights (lite)", "imagenet": "ImageNet weights (Keras)"}
    return words.get(stem.weights, f"the weights in {stem.weights}")


def _trained(run: _Run) -> keras.Model:
    """The model that the last stage trains."""
    return {"head": run.network.head, "top": run.network.classifier, "full": run.network.whole}[run.recipe.fine_tune]


def _key(recipe: Recipe, stem: Stem, material: Material) -> str:
    """Identify all that decides about the tuned weights."""
    settings = recipe.as_dict()
    del settings["devices"]  # so that a run can go on with fewer of them
    facts = [
        settings,
        stem.weights_id,
        material.codes,
        [record.frame_aspect for record in material.records],
        stem.spec.fingerprint(),
        AUGMENTATION_VERSION,
        KEPT_BY,
        [version(package) for package in ("keras", "tensorflow", "openvino", "numpy")],
        list(zip(material.hashes, material.roles.tolist(), material.labels.tolist(), strict=True)),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _refuse_another_run(out: Path, state: Mapping[str, Any], key: str) -> None:
    """Keep a run that is not this one from being replaced by it, unless that is wanted."""
    begun = any((out / name).exists() for name in ("checkpoint.npz", "model.keras", "bundle"))
    if begun and state.get("key") != key:
        raise UsageError(
            f"{out} holds a run of other images, weights, settings or package versions.",
            remedy="Choose another --out; or go on with that run by --resume; or replace it by --overwrite.",
            code="another_run",
        )


def _nothing_to_resume(out: Path, state: Mapping[str, Any]) -> UsageError:
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
    state: Mapping[str, Any],
) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not state.get("history"):
            (out / "model.keras").unlink(missing_ok=True)
        if read_state(out).get("key") != state["key"]:
            shutil.rmtree(out / "logs", ignore_errors=True)
        write_state(out, state)
        recipe.save(out / "recipe.json")
        write_split(out / "split.csv", material)
        write_audit(out / "audit.json", material)
        (out / "seen.json").write_text(json.dumps(seen, separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"The run folder {out} cannot be written: {error.strerror or error}.",
            remedy="Choose another --out, or free some space.",
        ) from error


def _embed(run: _Run) -> np.ndarray:
    """Return the embeddings of all images by the network as it was pretrained, float32 (n, d)."""
    with in_float32(run.network.whole, run.recipe.precision):
        graph = to_openvino(run.network.whole)
    images = Images(run.material.records, run.material.hashes)
    wanted = Wanted(run.stem.spec, view_count=0, seed=run.recipe.seed, output=1)
    return frozen_outputs(graph, images, wanted, engine=run.engine, console=run.console, what="Frozen features")


def _tune(run: _Run, embeddings: np.ndarray) -> History:
    """Train the head, and the blocks that the mode says; goes on from a checkpoint of this run."""
    recipe, codes = run.recipe, run.material.codes
    watch = Watch(run.console, codes, run.out / "logs", brief=() if recipe.fine_tune == "head" else ("head",))
    checkpoint = Checkpoint(run.out / "checkpoint.npz", run.key, run.console, run.checkpoint_every_s)
    saved = checkpoint.load()
    if saved is None or saved.stage == "head":
        stage, feed = head_training(recipe, embeddings[run.material.rows("train")]), _frozen_feed(run, embeddings)
        history = fit(run.network.head, feed, stage, recipe, codes, watch, checkpoint, saved)
        saved = None
        if recipe.fine_tune == "head" or history.interrupted or not recipe.epochs:
            return _told(history, run.console)
    feed = _over_trunk(run) if recipe.fine_tune == "top" else _fresh(run)
    stage, spread = fine_tuning(recipe), devices(recipe)
    return _told(fit(_trained(run), feed, stage, recipe, codes, watch, checkpoint, saved, spread), run.console)


def _frozen_feed(run: _Run, embeddings: np.ndarray) -> Feed:
    train, select = run.material.rows("train"), run.material.rows("select")
    labels = run.material.labels
    return from_arrays(embeddings[train][:, None], labels[train], embeddings[select], labels[select])


def _over_trunk(run: _Run) -> Feed:
    """Trunk features of the training images, cached for several views or computed for fresh ones, and of select."""
    with in_float32(run.network.trunk, run.recipe.precision):
        trunk = to_openvino(run.network.trunk)
    train, select = run.material.rows("train"), run.material.rows("select")
    labels = run.material.labels
    chosen = _features(run, trunk, "select", 0)[:, 0]
    if run.recipe.views:
        cached = _features(run, trunk, "train", run.recipe.views)
        return from_arrays(cached, labels[train], chosen, labels[select], batch=_scored(run, EVAL_BATCH))
    compiled, pixels = compile_graph(trunk, batch=batch_for(run.recipe.size_px)), _fresh(run)
    plain = from_arrays(chosen[:, None], labels[select], chosen, labels[select], batch=_scored(run, EVAL_BATCH))
    return replace(pixels, load=lambda draw: run_batches(compiled, pixels.load(draw)), select=plain.select)


def _scored(run: _Run, most: int) -> int:
    """Images scored at once: no more than the memory allows that was found enough for a training step."""
    return min(most, 2 * run.recipe.batch_size)


def _features(run: _Run, trunk: ov.Model, role: str, views: int) -> np.ndarray:
    rows = run.material.rows(role)
    return trunk_cache(
        run.out / "cache" / role,
        trunk,
        run.material.pick(rows),
        [run.material.hashes[i] for i in rows],
        run.stem.spec,
        view_count=views,
        seed=run.recipe.seed,
        weights_id=run.stem.trunk_id,
        console=run.console,
        artefacts=run.recipe.artefacts,
        what=f"Trunk features, {role}",
        engine=run.engine,
    )


def _fresh(run: _Run) -> Feed:
    material, spec = run.material, run.stem.spec
    train, select = material.rows("train"), material.rows("select")
    records, hashes = material.pick(train), [material.hashes[i] for i in train]
    return from_images(
        records,
        hashes,
        material.labels[train],
        material.pick(select),
        material.labels[select],
        spec,
        seed=run.recipe.seed,
        artefacts=run.recipe.artefacts,
        batch=_scored(run, EVAL_BATCH_PIXELS),
        source=decoded(run.out / "cache" / "pixels", records, hashes, spec, run.console),
    )


def _told(history: History, console: Console) -> History:
    if history.interrupted:
        console.print(
            f"Stopped by Ctrl-C; keeping the best model so far (epoch {history.best_epoch}). Export, calibration and "
            "test follow; a second Ctrl-C ends without a bundle. The same command with --resume trains on.",
            soft_wrap=True,
        )
    if history.stopped:
        console.print(f"Ended early: {history.stopped}.", highlight=False, soft_wrap=True)
    better = "" if history.best_epoch else ": training did not improve on where it started (epoch 0)"
    console.print(f"Kept epoch {history.best_epoch}{better}.", highlight=False)
    return history


def _keep_tuned(run: _Run, begun: Mapping[str, Any], history: History) -> None:
    """Keep the whole model, and mark the training as finished unless Ctrl-C ended it."""
    try:
        with in_float32(run.network.whole, run.recipe.precision):
            save_keras(run.network.whole, run.out / "model.keras")
    except (OSError, StorageError) as error:
        run.console.print(f"Warning: the tuned model could not be kept in {run.out}: {error}", highlight=False)
        return
    if history.interrupted:
        _keep_state(run, begun)
    elif _keep_state(run, {**begun, "history": asdict(history)}):
        (run.out / "checkpoint.npz").unlink(missing_ok=True)


def _keep_state(run: _Run, state: Mapping[str, Any]) -> bool:
    try:
        write_state(run.out, state)
    except OSError as error:
        run.console.print(f"Warning: {run.out} could not be marked as trained: {error}", highlight=False)
        return False
    return True
