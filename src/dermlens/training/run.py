"""A folder of labelled images becomes a model.

settings -> backbone -> data -> network -> run folder -> probe -> head -> fine-tuning -> Keras model -> bundle

A run that stops resumes where it was: the trunk cache at its image, the training at its step, and a finished training
is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from dermlens.bundle.case_mix import CaseMix, read_mix
from dermlens.data.records import Dataset
from dermlens.errors import DermlensError, StorageError, UsageError, os_errors
from dermlens.files import write_text
from dermlens.inference.runtime import batch_for, compile_graph, run_batches
from dermlens.networks.efficientnet import backbone
from dermlens.reporting.plots import KEPT_BY
from dermlens.training.caches import cached_probe, pixel_cache, trunk_cache
from dermlens.training.checkpoint import EVERY_S, Checkpoint, read_state, write_state
from dermlens.training.device import check_memory, devices, fit_batch, out_of_memory, resolve, set_up
from dermlens.training.features import Engine, FeatureSpec, local_engine
from dermlens.training.feed import EVAL_BATCH, Feed, from_arrays, from_images
from dermlens.training.finish import About, Candidate, finish, training_mix
from dermlens.training.fit import History, fine_tuning, fit, head_training
from dermlens.training.material import Material, SeenByRole, check_lineage, prepare
from dermlens.training.network import (
    Network,
    Stem,
    add_head,
    embed,
    export_graph,
    in_float32,
    load_keras,
    open_backbone,
    save_keras,
    trainable_millions,
)
from dermlens.training.probe import Probe, fit_probe
from dermlens.training.recipe import FREE, Recipe
from dermlens.training.views import AUGMENTATION_VERSION
from dermlens.training.watch import Watch

__all__ = ["About", "train"]


@dataclass(frozen=True)
class _Run:
    """What every stage of one run needs.

    `case_mix` decides about the bundle and not about the training. `state` is what an earlier try noted in the folder;
    `chosen_batch` is None where the recipe sets the batch size.
    """

    out: Path
    recipe: Recipe
    stem: Stem
    network: Network
    material: Material
    seen: SeenByRole
    key: str
    case_mix: CaseMix
    state: Mapping[str, Any]
    chosen_batch: int | None
    console: Console
    checkpoint_every_s: float
    engine: Engine

    @property
    def model(self) -> keras.Model:
        """The model that the last stage trains."""
        return self.network.last_stage(self.recipe.fine_tune)

    def say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


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
        dataset: from `read_dataset`; roles already set in its records stay.
        out: the run folder; what an interrupted run of the same recipe and data left there is used.
        allow_leakage: train although pictures or lesions cross the split; the bundle is marked leaky.
        resume: refuse to start from the beginning: the folder must hold a run of exactly these images, weights and
            settings.
        overwrite: replace another run in the folder.
        isic_ids_of_lesion: other ISIC ids of the same lesions, so that they count as seen as well.
        checkpoint_every_s: shortest time between two checkpoints of the training.
        engine: computes frozen features, this process when None; what is trained is trained here.

    Raises:
        LeakageError, DataError, RecipeError, WeightsError, StorageError, UsageError: with the remedy; the last also
            before anything is trained when the case mix does not fit the classes.
    """
    console, started = console or Console(stderr=True, highlight=False), time.monotonic()
    set_up(recipe, console)
    settings = resolve(recipe, backbone(recipe.backbone))
    stem = open_backbone(settings)
    material = prepare(dataset, settings, allow_leakage=allow_leakage, console=console)
    material, seen_before = check_lineage(stem.weights, material, allow_leakage=allow_leakage, console=console)
    mix = read_mix(settings.case_mix, material.codes, training_mix(material))

    network = add_head(stem, settings, len(material.codes))
    state = read_state(out)
    model, key_of = network.last_stage(settings.fine_tune), partial(_key, stem=stem, material=material)
    trained = bool(state.get("history")) and (out / "model.keras").is_file()
    settings, chosen = _choose_batch(recipe.batch_size, settings, model, key_of, state, trained, console)
    key = key_of(settings)
    seen = {**material.seen(isic_ids_of_lesion or {}), **seen_before}
    engine = engine or local_engine
    run = _Run(
        out, settings, stem, network, material, seen, key, mix, state, chosen, console, checkpoint_every_s, engine
    )
    _check_folder(run, resume=resume, overwrite=overwrite)
    finished = state.get("bundle") and (out / "bundle" / "bundle.json").is_file()
    asked = {"neighbours": about.neighbours, "case_mix": mix.as_dict()}
    if resume and finished and all(state.get(name) == value for name, value in asked.items()):
        run.say(f"This run is finished; its model is in {out / 'bundle'}.")
        return out / "bundle"

    note = _prepare_folder(run, about, allow_leakage=allow_leakage)
    started -= 60 * note["minutes"]  # earlier tries count too
    embeddings, probe = cached_probe(out / "cache" / "frozen.npz", key, lambda: _fit_probe(run), console)
    history, whole = _earlier_training(run) or _fit_network(run, embeddings, note, started)

    probe_test = probe.probabilities(embeddings[material.rows("test")])
    candidate = Candidate(whole, stem, settings, material, history, probe, probe_test, seen, mix)
    try:
        bundle = finish(candidate, out, about, dataset, started=started, console=console)
    except KeyboardInterrupt:
        run.say("Stopped before the bundle was written; the same command resumes from the trained network.")
        raise
    _save_state(run, {**read_state(out), "bundle": not history.interrupted})
    return bundle


def _choose_batch(
    given: int,
    recipe: Recipe,
    model: keras.Model,
    key_of: Callable[[Recipe], str],
    state: Mapping[str, Any],
    trained: bool,
    console: Console,
) -> tuple[Recipe, int | None]:
    """Return the recipe with a batch that the memory holds, and its size where the user gave none (`given` is 0).

    A run that resumes keeps its batch, which has to fit again unless the training is finished.
    """
    chosen = int(state.get("batch_size") or 0)
    earlier = replace(recipe, batch_size=chosen if chosen and given in (0, chosen) else recipe.batch_size)
    same = key_of(earlier) == state.get("key")
    if not (given or same):
        recipe = fit_batch(model, recipe, console)
        return recipe, recipe.batch_size
    if not (same and trained):
        check_memory(model, earlier, begun=same)
    return earlier, chosen or None if same else None


def _key(recipe: Recipe, stem: Stem, material: Material) -> str:
    """Identify everything that decides about the trained weights."""
    settings = recipe.as_dict()
    for name in FREE:
        del settings[name]
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


def _check_folder(run: _Run, *, resume: bool, overwrite: bool) -> None:
    """Refuse to resume what is not this run, and to replace another run unless the caller wants it."""
    same = run.state.get("key") == run.key
    if resume and not same:
        what = "of other images, weights, settings or package versions" if run.state else "to resume"
        raise UsageError(
            f"--resume found {'a run' if run.state else 'no run'} in {run.out} {what}.",
            remedy="Give the same data and leave out the settings (they are read from the run), or start without "
            "--resume.",
            code="nothing_to_resume",
        )
    begun = any((run.out / name).exists() for name in ("checkpoint.npz", "model.keras", "bundle"))
    if begun and not same and not overwrite:
        raise UsageError(
            f"{run.out} holds a run of other images, weights, settings or package versions.",
            remedy="Choose another --out, continue that run with --resume, or replace it with --overwrite.",
            code="another_run",
        )


def _prepare_folder(run: _Run, about: About, *, allow_leakage: bool) -> dict[str, Any]:
    """Write what the run is, remove what another left, and return the note of a run that has just begun."""
    same, out = run.state.get("key") == run.key, run.out
    note = {
        "key": run.key,
        "name": about.name,
        "allow_leakage": allow_leakage,
        "minutes": float(run.state.get("minutes", 0.0)) if same else 0.0,
        "batch_size": run.chosen_batch,
        "neighbours": about.neighbours,
        "case_mix": run.case_mix.as_dict(),
    }
    trained = same and bool(run.state.get("history"))
    with os_errors(f"The run folder {out} cannot be written", "Choose another --out, or free some space."):
        out.mkdir(parents=True, exist_ok=True)
        for left_over in out.glob(".*-new.*"):  # of a process that was killed while it wrote
            left_over.unlink()
        for folder in out.glob(".graph-*"):
            shutil.rmtree(folder, ignore_errors=True)
        if not trained:
            (out / "model.keras").unlink(missing_ok=True)
        if not same:
            shutil.rmtree(out / "logs", ignore_errors=True)
        write_state(out, {**run.state, **note, "bundle": False} if trained else note)
        run.recipe.save(out / "recipe.json")
        run.material.write(out)
        write_text(out / "seen.json", json.dumps(run.seen, separators=(",", ":")) + "\n")
    run.say(_plan(run))
    return note


def _plan(run: _Run) -> str:
    recipe, row = run.recipe, run.stem.row
    what = {
        "head": "trains the last layer",
        "top": f"trains blocks {recipe.cut_block + 1} to {row.blocks} on "
        + (f"cached features of {recipe.views} views" if recipe.views else "features of fresh views"),
        "full": "trains the whole network on fresh views",
    }[recipe.fine_tune]
    words = {"none": "random weights", "lite": "ImageNet weights (lite)", "imagenet": "ImageNet weights (Keras)"}
    start = words.get(run.stem.weights, f"the weights in {run.stem.weights}")
    spread = f", each batch on {recipe.devices} devices" if recipe.devices > 1 else ""
    return (
        f"{row.title} at {recipe.size_px} px from {start}: {what} ({trainable_millions(run.model):.2f} M parameters, "
        f"batch norm {recipe.batch_norm}, {recipe.precision}, {recipe.threads} threads{spread})."
    )


def _fit_probe(run: _Run) -> tuple[np.ndarray, Probe]:
    """Return the embeddings of all images by the network as it was pretrained, and the probe fitted on them."""
    material, labels = run.material, run.material.labels
    embeddings = embed(run.stem, run.network, material.images(), run.recipe, run.engine, run.console)
    run.say("Fitting the linear probe ...")
    train, select = material.rows("train"), material.rows("select")
    parts = (embeddings[train], labels[train]), (embeddings[select], labels[select])
    return embeddings, fit_probe(*parts, len(material.codes))


def _earlier_training(run: _Run) -> tuple[History, keras.Model] | None:
    """Return history and model of a finished training of exactly this run, if there is one."""
    if run.state.get("key") != run.key or not run.state.get("history"):
        return None
    try:
        earlier = History(**run.state["history"]), load_keras(run.out)
    except (OSError, ValueError, KeyError, TypeError, DermlensError):
        return None
    run.say("The training is already finished; continuing from its model.")
    return earlier


def _fit_network(
    run: _Run, embeddings: np.ndarray, note: Mapping[str, Any], started: float
) -> tuple[History, keras.Model]:
    """Train head and blocks, resuming from a checkpoint of this run, and save the whole model."""
    recipe, codes = run.recipe, run.material.codes
    watch = Watch(run.console, codes, run.out / "logs", brief=() if recipe.fine_tune == "head" else ("head",))
    checkpoint = Checkpoint(run.out / "checkpoint.npz", run.key, run.console, run.checkpoint_every_s)
    saved, history = checkpoint.load(), None
    try:
        if saved is None or saved.stage == "head":
            train, select = run.material.rows("train"), run.material.rows("select")
            labels, stage = run.material.labels, head_training(recipe, embeddings[train])
            feed = from_arrays(embeddings[train][:, None], labels[train], embeddings[select], labels[select])
            history = fit(run.network.head, feed, stage, recipe, codes, watch, checkpoint, saved)
            saved = None
        if history is None or not (recipe.fine_tune == "head" or history.interrupted or not recipe.epochs):
            feed = _trunk_feed(run) if recipe.fine_tune == "top" else _pixel_feed(run)
            stage, spread = fine_tuning(recipe), devices(recipe)
            history = fit(run.model, feed, stage, recipe, codes, watch, checkpoint, saved, spread)
    except tf.errors.ResourceExhaustedError as error:
        raise out_of_memory(recipe) from error
    _print_end(run, history)
    _save_model(run, {**note, "minutes": (time.monotonic() - started) / 60}, history)
    return history, run.network.whole


def _trunk_feed(run: _Run) -> Feed:
    """Trunk features of the training images, cached for several views or computed for fresh ones, and of select."""
    recipe, material, labels = run.recipe, run.material, run.material.labels
    trunk = export_graph(run.network.trunk, recipe.precision)

    def features(role: str, view_count: int, artefacts: float) -> np.ndarray:
        return trunk_cache(
            run.out / "cache" / role,
            trunk,
            material.images(material.rows(role)),
            FeatureSpec(run.stem.spec, view_count, recipe.seed, artefacts, dtype="float16"),
            weights_id=run.stem.trunk_id,
            console=run.console,
            what=f"Trunk features, {role}",
            engine=run.engine,
        )

    train, select = labels[material.rows("train")], labels[material.rows("select")]
    plain, batch = features("select", 0, 0.0)[:, 0], min(EVAL_BATCH, 2 * recipe.batch_size)
    if recipe.views:
        return from_arrays(features("train", recipe.views, recipe.artefacts), train, plain, select, batch=batch)
    compiled, pixels = compile_graph(trunk, batch=batch_for(recipe.size_px)), _pixel_feed(run)
    scored = from_arrays(plain[:, None], select, plain, select, batch=batch).select
    return replace(pixels, load=lambda draw: run_batches(compiled, pixels.load(draw)), select=scored)


def _pixel_feed(run: _Run) -> Feed:
    """Fresh views of the training images, and the plain ones of select."""
    material, train = run.material, run.material.rows("train")
    copies = pixel_cache(run.out / "cache" / "pixels", material.images(train), run.stem.spec, run.console)
    return from_images(material, train, material.rows("select"), run.stem.spec, run.recipe, copies)


def _print_end(run: _Run, history: History) -> None:
    if history.interrupted:
        run.say(
            f"Stopped by Ctrl-C. The best model so far (epoch {history.best_epoch}) is exported, calibrated and tested "
            "now; press Ctrl-C again to stop without a bundle. To train further, run the same command with --resume."
        )
    if history.stopped:
        run.say(f"Ended early: {history.stopped}.")
    better = "" if history.best_epoch else ": the training did not improve on its start (epoch 0)"
    run.say(f"Best epoch: {history.best_epoch}{better}.")


def _save_model(run: _Run, note: Mapping[str, Any], history: History) -> None:
    """Save the whole model, and mark the training as finished unless Ctrl-C ended it."""
    try:
        with in_float32(run.network.whole, run.recipe.precision):
            save_keras(run.network.whole, run.out / "model.keras")
    except StorageError as error:
        run.say(f"Warning: the trained model could not be saved in {run.out}: {error}")
        return
    if history.interrupted:
        _save_state(run, note)
    elif _save_state(run, {**note, "history": asdict(history)}):
        with suppress(OSError):
            (run.out / "checkpoint.npz").unlink(missing_ok=True)


def _save_state(run: _Run, state: Mapping[str, Any]) -> bool:
    try:
        write_state(run.out, state)
    except OSError as error:
        run.say(f"Warning: {run.out} could not be marked as trained: {error}")
        return False
    return True
