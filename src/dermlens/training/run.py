"""A folder of labelled images becomes a model.

audit -> split -> probe -> head -> fine-tune over the cached trunk -> export -> calibrate -> test -> bundle

A run that stops goes on where the costly parts ended: the trunk cache continues, and a finished fine-tuning is not
repeated.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
from rich.console import Console

from dermlens.data.records import Dataset
from dermlens.errors import DermlensError, StorageError
from dermlens.training.assess import About, Candidate, finish
from dermlens.training.export import compile_graph, to_openvino
from dermlens.training.fit import History, fine_tune, fit_head
from dermlens.training.lineage import check_lineage
from dermlens.training.material import Material, prepare
from dermlens.training.memory import keep_freed_memory
from dermlens.training.network import Network, Stem, open_backbone, trainable_millions, with_head
from dermlens.training.outputs import load_keras, save_keras, seen_by_role, write_audit, write_split
from dermlens.training.pipeline import AUGMENTATION_VERSION
from dermlens.training.probe import Probe, fit_probe
from dermlens.training.recipe import Recipe
from dermlens.training.split import ROLES
from dermlens.training.trunk import BATCH, plain_outputs, trunk_cache

__all__ = ["About", "train"]


def train(
    dataset: Dataset,
    out: Path,
    recipe: Recipe,
    about: About,
    *,
    allow_leakage: bool = False,
    console: Console | None = None,
    isic_ids_of_lesion: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Train a model and return its bundle folder, `out/bundle`.

    Args:
        dataset: from `read_dataset`; roles already set in its records are kept.
        out: the run folder; what an interrupted run of the same recipe and data left there is used.
        allow_leakage: train although pictures or lesions cross the split; the bundle is marked leaky.
        isic_ids_of_lesion: other ISIC ids of the same lesions, so that they count as seen as well.

    Raises:
        LeakageError, DataError, RecipeError, WeightsError, StorageError: with the remedy.
    """
    console = console or Console(stderr=True)
    started = time.monotonic()
    keep_freed_memory()
    stem = open_backbone(recipe)
    material = prepare(dataset, recipe, allow_leakage=allow_leakage, console=console)
    material, known = check_lineage(recipe.weights, material, allow_leakage=allow_leakage, console=console)
    seen = {**seen_by_role(material, isic_ids_of_lesion or {}), **known}
    key = _key(recipe, stem, material)
    tuned = _tuned_before(out, key)
    _prepare_folder(out, recipe, material, seen, fresh=tuned is None)
    network = with_head(stem, recipe, len(material.codes))
    console.print(
        f"{stem.row.title} from {stem.weights} weights; blocks after {recipe.cut_block} are trained "
        f"({trainable_millions(network.classifier):.1f} M parameters).",
        highlight=False,
    )
    probe, probe_test, head_features = _probe(stem, network, material, console)
    if tuned is None:
        history = _fine_tune(out, recipe, stem, network, material, head_features, console)
        whole = network.whole
        _keep_history(out, key, history, console)
    else:
        console.print("Fine-tuning had been finished before; going on from its model.", highlight=False)
        history, whole = tuned
    candidate = Candidate(whole, stem, recipe, material, history, probe, probe_test, seen)
    try:
        return finish(candidate, out, about, dataset, started=started, console=console)
    except KeyboardInterrupt:
        console.print("Stopped before the bundle was written; the same command goes on from the tuned model.")
        raise


def _key(recipe: Recipe, stem: Stem, material: Material) -> str:
    """Identify all that decides about the tuned weights."""
    facts = [
        recipe.as_dict(),
        stem.weights_id,
        stem.spec.fingerprint(),
        AUGMENTATION_VERSION,
        list(zip(material.hashes, material.roles.tolist(), material.labels.tolist(), strict=True)),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _tuned_before(out: Path, key: str) -> tuple[History, keras.Model] | None:
    """Return history and model of a finished fine-tuning of exactly this run, if there is one."""
    try:
        state = json.loads((out / "tuned.json").read_text(encoding="utf-8"))
        if state.pop("key") != key:
            return None
        return History(**state), load_keras(out)
    except (OSError, ValueError, KeyError, TypeError, DermlensError):
        return None


def _prepare_folder(
    out: Path, recipe: Recipe, material: Material, seen: Mapping[str, Mapping[str, list[str]]], *, fresh: bool
) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if fresh:
            for name in ("tuned.json", "model.keras"):
                (out / name).unlink(missing_ok=True)
        recipe.save(out / "recipe.json")
        write_split(out / "split.csv", material)
        write_audit(out / "audit.json", material)
        (out / "seen.json").write_text(json.dumps(seen, separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"The run folder {out} cannot be written: {error.strerror or error}.",
            remedy="Choose another --out, or free some space.",
        ) from error


def _probe(
    stem: Stem, network: Network, material: Material, console: Console
) -> tuple[Probe, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Fit the linear probe; returns it, its probabilities on test, and (embeddings, labels) of train for the head."""
    compiled = compile_graph(to_openvino(network.whole), batch=BATCH)
    embeddings = plain_outputs(compiled, material.records, stem.spec, output=1, console=console, what="Frozen features")
    parts = {role: (embeddings[material.rows(role)], material.labels[material.rows(role)]) for role in ROLES}
    console.print("Fitting the linear probe ...", highlight=False)
    fitted = fit_probe(parts["train"], parts["select"], len(material.codes))
    return fitted, fitted.probabilities(parts["test"][0]), parts["train"]


def _fine_tune(
    out: Path,
    recipe: Recipe,
    stem: Stem,
    network: Network,
    material: Material,
    head_features: tuple[np.ndarray, np.ndarray],
    console: Console,
) -> History:
    fit_head(network.classifier, *head_features, recipe, len(material.codes))
    trunk = to_openvino(network.trunk)
    cached = {}
    for role, views in (("train", recipe.views), ("select", 0)):
        rows = material.rows(role)
        cached[role] = trunk_cache(
            out / "cache" / role,
            trunk,
            material.pick(rows),
            [material.hashes[i] for i in rows],
            stem.spec,
            view_count=views,
            seed=recipe.seed,
            weights_id=stem.weights_id,
            console=console,
            what=f"Trunk features, {role}",
        )

    def keep() -> None:
        try:
            save_keras(network.whole, out / "model.keras")
        except StorageError as error:
            console.print(f"Warning: {error} Training goes on.", style="yellow", highlight=False)

    return fine_tune(
        network.classifier,
        (cached["train"], material.labels[material.rows("train")]),
        (cached["select"][:, 0], material.labels[material.rows("select")]),
        recipe,
        len(material.codes),
        console,
        on_best=keep,
    )


def _keep_history(out: Path, key: str, history: History, console: Console) -> None:
    """Mark the fine-tuning as finished, unless Ctrl-C ended it."""
    if history.interrupted:
        return
    try:
        (out / "tuned.json").write_text(json.dumps({"key": key, **asdict(history)}) + "\n", encoding="utf-8")
    except OSError as error:
        console.print(f"Warning: {out / 'tuned.json'} could not be written: {error}.", highlight=False)
