"""A tuned network -> a bundle: exported, calibrated and tested on the outputs of the graph that will serve."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np
import openvino as ov
from rich.console import Console

from dermlens.audit.findings import summary
from dermlens.bundle.bundle import (
    BASELINES_FILE,
    HASH_CHARS,
    NEIGHBOURS_FILE,
    TRUST_FILE,
    load_bundle,
    rewrite_bundle,
    write_bundle,
)
from dermlens.bundle.card import make_card
from dermlens.bundle.card_text import versions
from dermlens.bundle.decision import Calibration, DecisionRule, decide, probabilities
from dermlens.bundle.trust import NOT_FITTED
from dermlens.data.manifest import manifest_sha256
from dermlens.data.records import Dataset, data_fingerprint
from dermlens.diagnoses import display_name
from dermlens.errors import StorageError
from dermlens.evaluation.baselines import HeldOut, compare_held_out
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.calibration import BALANCED_RULE, MIN_LESIONS, SEPARATED, BiasTest, choose_calibration
from dermlens.evaluation.fit_trust import Labelled, fit_examples, fit_trust
from dermlens.evaluation.scores import score
from dermlens.inference.runtime import Runtime, batch_for, compile_graph
from dermlens.networks.openvino import check_export, to_openvino
from dermlens.reporting.plots import plot_history
from dermlens.training.features import plain_outputs
from dermlens.training.fit import History
from dermlens.training.material import Material
from dermlens.training.network import Stem, head_of
from dermlens.training.outputs import print_report, save_keras, write_history, write_predictions
from dermlens.training.probe import STRENGTHS, Probe
from dermlens.training.recipe import Recipe
from dermlens.training.split import role_table
from dermlens.training.step import answered_prior
from dermlens.training.views import plain_view


@dataclass(frozen=True)
class About:
    """What a bundle says of itself beyond what the training measures.

    `neighbours`: also names of training images.
    """

    name: str
    version: str = "1.0.0"
    scope: str = ""
    modality: str = "unknown"
    weights_licence: str = "that of the training images; see their source"
    data_sources: tuple[str, ...] = ()
    not_tested_on: tuple[str, ...] = ()
    neighbours: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A tuned network with all that its bundle will tell; `probe_test` is float64 (test images, classes)."""

    whole: keras.Model
    stem: Stem
    recipe: Recipe
    material: Material
    history: History
    probe: Probe
    probe_test: np.ndarray
    seen: Mapping[str, Mapping[str, list[str]]]


@dataclass(frozen=True)
class Fit:
    """What the calibrate role gave; `reason` says why when the probabilities could not be calibrated."""

    calibration: Calibration
    rule: DecisionRule
    fitted: bool
    reason: str | None
    lesions: int
    bias: BiasTest | None = None


def finish(
    candidate: Candidate, out: Path, about: About, dataset: Dataset, *, started: float, console: Console
) -> Path:
    """Export, calibrate, test and write `out/bundle`; the plots and tables beside it may fail without losing it.

    Raises:
        WeightsError: the exported graph disagrees with Keras. StorageError: the bundle cannot be written.
    """
    material, stem = candidate.material, candidate.stem
    if not (out / "model.keras").is_file():
        _aside(console, lambda: save_keras(candidate.whole, out / "model.keras"))
    graph = to_openvino(candidate.whole)
    sample = np.stack([plain_view(r, stem.spec) for r in material.pick(material.rows("test")[:8])])
    difference = check_export(candidate.whole, graph, sample)
    compiled = compile_graph(graph, batch=batch_for(stem.spec.size_px))

    def logits(role: str) -> np.ndarray:
        records = material.pick(material.rows(role))
        return plain_outputs(compiled, records, stem.spec, output=0, console=console, what=f"Outputs, {role}")

    fit = _calibrate(candidate, logits("calibrate"))
    if not fit.fitted:
        console.print(f"The probabilities are not calibrated: {fit.reason}.", style="yellow", highlight=False)
    rows = material.rows("test")
    probability = probabilities(logits("test"), fit.calibration)
    decision = decide(probability, fit.calibration, fit.rule)
    card = _card(candidate, about, dataset, fit, *_measure(candidate, rows, probability, decision))
    card["training"]["minutes"] = round((time.monotonic() - started) / 60, 1)
    card["training"]["export_difference"] = difference
    held = _held_out(candidate, rows, decision)
    card["baselines"] = compare_held_out(held, material.codes, seed=candidate.recipe.seed)
    write_bundle(
        out / "bundle",
        make_card(card),
        head=head_of(candidate.whole),
        seen=candidate.seen,
        write_graph=lambda path: ov.save_model(graph, path, compress_to_fp16=False),
        arrays={BASELINES_FILE: held.arrays()},
    )
    fit_facts(
        out / "bundle", _roles(material), seed=candidate.recipe.seed, console=console, neighbours=about.neighbours
    )
    _aside(
        console,
        lambda: write_predictions(
            out / "test_predictions.csv", material, rows, probability, decision, candidate.probe_test
        ),
    )
    history = candidate.history
    _aside(console, lambda: write_history(out / "history.csv", history))
    _aside(console, lambda: plot_history(history.rows, out / "history.png", kept=history.best_epoch))
    print_report(load_bundle(out / "bundle").card, out, console)
    return out / "bundle"


def fit_facts(
    folder: Path, roles: Mapping[str, Labelled], *, seed: int, console: Console, neighbours: bool = True
) -> None:
    """Fit the trust facts of the bundle at `folder`, and write them and the model card into it.

    Args:
        roles: images of "train" and "calibrate", to fit on, and of "test", to measure on.
        neighbours: also keep the names of the training lesions and their embeddings; otherwise no image is named.

    Raises:
        StorageError: the bundle cannot be written; it is unchanged.
    """
    started = time.monotonic()
    bundle = load_bundle(folder)
    runtime = Runtime(bundle.graph_path)
    facts, arrays = fit_trust(bundle, runtime, roles, seed=seed, console=console)
    examples = fit_examples(bundle, runtime, roles["train"], seed=seed, console=console) if neighbours else None
    facts["neighbours"] = None if examples is None else {"lesions": len(examples.places)}
    facts["fitted_in_s"] = round(time.monotonic() - started, 1)
    kept = {} if examples is None else examples.arrays()
    card = bundle.card.with_trust(facts)
    if not neighbours:
        card = msgspec.structs.replace(card, data=msgspec.structs.replace(card.data, unreadable=()))
    rewrite_bundle(folder, card, {TRUST_FILE: arrays, NEIGHBOURS_FILE: kept})


def _held_out(candidate: Candidate, rows: np.ndarray, decision: np.ndarray) -> HeldOut:
    material = candidate.material
    return HeldOut(
        hashes=tuple(material.hashes[i][:HASH_CHARS] for i in rows),
        lesions=np.array(material.lesions(rows), dtype=np.int64),
        truth=material.labels[rows],
        model=decision,
        probe=candidate.probe_test.argmax(axis=1),
        majority=int(np.bincount(material.labels[material.rows("train")]).argmax()),
    )


def _roles(material: Material) -> dict[str, Labelled]:
    """The images that the trust facts are fitted and measured on."""
    lesions = np.array(material.lesions(), dtype=np.int64)
    rows = {role: material.rows(role) for role in ("train", "calibrate", "test")}
    return {role: Labelled(material.pick(r), material.labels[r], lesions[r]) for role, r in rows.items()}


def _aside(console: Console, write: Callable[[], object]) -> None:
    """Write something that the model does not need; tell a failure and go on."""
    try:
        write()
    except (OSError, StorageError) as error:
        console.print(f"Warning: {error}", style="yellow", highlight=False)


def _calibrate(candidate: Candidate, logits: np.ndarray) -> Fit:
    material, recipe = candidate.material, candidate.recipe
    rows = material.rows("calibrate")
    lesions = material.lesions(rows)
    count = len(set(lesions))
    labels = material.labels[material.rows("train")]
    met = answered_prior(labels, len(material.codes), recipe)
    prior, training_prior = material.lesion_prior(), tuple(float(p) for p in met)
    rule = BALANCED_RULE if recipe.decision_rule == "prior_adjusted" else DecisionRule("largest_probability", 0.0)
    if count < MIN_LESIONS:
        reason = f"{count} lesions in the calibrate role, at least {MIN_LESIONS} are needed"
        return Fit(Calibration(1.0, prior, training_prior), rule, False, reason, count)
    calibration, found = choose_calibration(
        logits, material.labels[rows], lesions, prior=prior, training_prior=training_prior, seed=recipe.seed
    )
    separated = calibration.temperature == 1.0
    return Fit(calibration, rule, not separated, SEPARATED if separated else None, count, found)


def _measure(
    candidate: Candidate, rows: np.ndarray, probability: np.ndarray, decision: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score model and probe on the same test images, and their difference in pairs."""
    material, seed = candidate.material, candidate.recipe.seed
    truth, lesions = material.labels[rows], material.lesions(rows)
    metrics = score(truth, probability, decision, lesions, material.codes, seed=seed)
    probe_decision = candidate.probe_test.argmax(axis=1)
    scored = score(truth, candidate.probe_test, probe_decision, lesions, material.codes, seed=seed)
    probe = {name: scored[name] for name in ("accuracy", "balanced_accuracy", "macro_auc")}
    probe["model_minus_probe_balanced_accuracy"] = paired_difference(
        truth, decision, probe_decision, lesions, seed=seed
    )
    probe["regularisation_c"] = candidate.probe.strength
    probe["converged"] = candidate.probe.converged
    probe["strength_at_edge"] = candidate.probe.strength in (STRENGTHS[0], STRENGTHS[-1])
    return metrics, probe


def _card(
    candidate: Candidate,
    about: About,
    dataset: Dataset,
    fit: Fit,
    metrics: dict[str, Any],
    probe: dict[str, Any],
) -> dict[str, Any]:
    material, row, history = candidate.material, candidate.stem.row, candidate.history
    names = [display_name(code) for code in material.codes]
    scope = about.scope or f"Reads images like those it was trained on, of {len(names)} classes: {', '.join(names)}."
    return {
        "name": about.name,
        "version": about.version,
        "created": datetime.date.today().isoformat(),
        "scope": scope,
        "modality": about.modality,
        "classes": [{"code": c, "name": n} for c, n in zip(material.codes, names, strict=True)],
        "input": candidate.stem.spec.as_dict(),
        "backbone": {
            "name": row.name,
            "title": row.title,
            "weights": candidate.recipe.weights,
            "licence": row.licence,
        },
        "calibration": fit.calibration.as_dict(),
        "calibration_fit": {
            "fitted": fit.fitted,
            "reason": fit.reason,
            "lesions": fit.lesions,
            "bias": None if fit.bias is None else fit.bias.as_dict(),
        },
        "decision_rule": fit.rule.as_dict(),
        "recipe": candidate.recipe.as_dict(),
        "data": _data(candidate, about, dataset),
        "training": {
            "epochs_done": sum("train_loss" in row for row in history.rows),
            "best_epoch": history.best_epoch,
            "interrupted": history.interrupted,
            "stopped": history.stopped,
            **{key: history.rows[history.best_epoch][key] for key in ("select_macro_auc", "select_balanced_accuracy")},
        },
        "metrics": {"split": "test role", **metrics},
        "probe": probe,
        "licence": {"code": "Apache-2.0", "weights": about.weights_licence},
        "versions": versions(),
        "trust": NOT_FITTED.as_dict(),
        **about.extra,
    }


def _data(candidate: Candidate, about: About, dataset: Dataset) -> dict[str, Any]:
    material = candidate.material
    return {
        "fingerprint": data_fingerprint(material.records, material.hashes),
        "manifest_sha256": manifest_sha256(dataset),
        "images": len(material.records),
        "images_unreadable": len(material.unreadable),
        "unreadable": [Path(image).name for image in material.unreadable] if about.neighbours else [],
        "lesions_known": round(material.lesions_known, 4),
        "roles": role_table(material.records, material.hashes, list(material.roles)),
        "sources": list(about.data_sources) or [dataset.layout],
        "notes": list(dataset.notes),
        "audit": summary(material.findings),
        "leaky": material.leaky,
        "not_tested_on": list(about.not_tested_on),
    }
