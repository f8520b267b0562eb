"""A trained network -> a bundle: exported, calibrated, measured on the graph that will serve, and written once."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import openvino as ov
from rich.console import Console

from dermlens.audit.findings import summary
from dermlens.bundle.bundle import BASELINES_FILE, HASH_CHARS, NEIGHBOURS_FILE, write_bundle
from dermlens.bundle.card import make_card
from dermlens.bundle.card_text import versions
from dermlens.bundle.case_mix import TRAINING, CaseMix
from dermlens.bundle.probabilities import Calibration
from dermlens.data.manifest import manifest_sha256
from dermlens.data.records import Dataset, data_fingerprint
from dermlens.diagnoses import display_name
from dermlens.errors import DataError, StorageError, os_errors
from dermlens.evaluation.baselines import AnswersOnTest, compare_test_answers
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.fit_model import Fit
from dermlens.evaluation.fit_trust import Calibrated, Labelled, Sample, fit_examples, fit_trust, run_model
from dermlens.evaluation.scores import score
from dermlens.files import write_csv
from dermlens.inference.runtime import Runtime
from dermlens.networks.openvino import check_export, to_openvino
from dermlens.reporting.plots import plot_history
from dermlens.text import figure
from dermlens.training.fit import History
from dermlens.training.material import Material
from dermlens.training.network import Stem, head_of, save_keras
from dermlens.training.probe import STRENGTHS, Probe
from dermlens.training.recipe import Recipe
from dermlens.training.split import ROLES, role_table
from dermlens.training.step import answer_prior
from dermlens.training.views import plain_view

Arrays = Mapping[str, npt.NDArray[Any]]


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
    """A trained network with everything that its bundle says; `probe_test` is float64 (test images, classes).

    `case_mix`: for which the model states its probabilities by default.
    """

    whole: keras.Model
    stem: Stem
    recipe: Recipe
    material: Material
    history: History
    probe: Probe
    probe_test: np.ndarray
    seen: Mapping[str, Mapping[str, list[str]]]
    case_mix: CaseMix


def finish(
    candidate: Candidate, out: Path, about: About, dataset: Dataset, *, started: float, console: Console
) -> Path:
    """Export, calibrate, measure and write `out/bundle`; plots and tables beside it may fail without losing it.

    Raises:
        WeightsError: the exported graph disagrees with Keras. StorageError: the bundle cannot be written.
    """
    material, stem, seed = candidate.material, candidate.stem, candidate.recipe.seed
    if not (out / "model.keras").is_file():
        _optional(console, lambda: save_keras(candidate.whole, out / "model.keras"))
    graph = to_openvino(candidate.whole)
    sample = np.stack([plain_view(r, stem.spec) for r in material.pick(material.rows("test")[:8])])
    difference = check_export(candidate.whole, graph, sample)
    images = _images_by_role(material)
    remedy = "Free some space there; the same command continues from the trained network."
    with os_errors(f"The graph could not be written in {out}", remedy):
        made = tempfile.TemporaryDirectory(prefix=".graph-", dir=out, ignore_cleanup_errors=True)
    with made as folder:
        try:
            ov.save_model(graph, Path(folder, "graph.xml"), compress_to_fp16=False)
        except RuntimeError as error:  # OpenVINO's word for a full disk
            said = f"The graph could not be written in {out}; the disk may be full ({error})."
            raise StorageError(said, remedy=remedy) from error
        runtime = Runtime(Path(folder, "graph.xml"))
        fit = _calibrate(candidate, about, runtime, images["calibrate"], console)
        test = _answers(fit, runtime, images["test"], console, "Outputs, test")
        facts, arrays = trust_facts(fit, runtime, images, neighbours=about.neighbours, seed=seed, console=console)
    baselines = _test_answers(candidate, test)
    card = _card(candidate, about, dataset, fit, test)
    card["training"] |= {"minutes": round((time.monotonic() - started) / 60, 1), "export_difference": difference}
    card |= {"baselines": compare_test_answers(baselines, material.codes, seed=seed), "trust": facts}
    write_bundle(
        out / "bundle",
        make_card(card),
        head=head_of(candidate.whole),
        seen=candidate.seen,
        write_graph=lambda path: ov.save_model(graph, path, compress_to_fp16=False),
        arrays={BASELINES_FILE: baselines.arrays(), **arrays},
    )
    _write_beside(candidate, test, out, console)
    _print_report(card, out, console)
    return out / "bundle"


def trust_facts(
    model: Calibrated, runtime: Runtime, roles: Mapping[str, Labelled], *, neighbours: bool, seed: int, console: Console
) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Fit what a model knows of its own limits: the `trust` object of bundle.json, and arrays by file name.

    Args:
        roles: images of "train", "select" and "calibrate", to fit on, and of "test", to measure on.
        neighbours: store the names of the training lesions and their embeddings; otherwise no image is named.
    """
    started = time.monotonic()
    facts, arrays = fit_trust(model, runtime, roles, seed=seed, console=console)
    examples = fit_examples(model, runtime, roles["train"], seed=seed, console=console) if neighbours else None
    facts["neighbours"] = None if examples is None else {"lesions": len(examples.places)}
    facts["fitted_in_s"] = round(time.monotonic() - started, 1)
    return facts, {**arrays, NEIGHBOURS_FILE: {} if examples is None else examples.arrays()}


def _images_by_role(material: Material) -> dict[str, Labelled]:
    lesions = np.array(material.lesions(), dtype=np.int64)
    rows = {role: material.rows(role) for role in ROLES}
    return {role: Labelled(material.pick(r), material.labels[r], lesions[r]) for role, r in rows.items()}


def _answers(fit: Fit, runtime: Runtime, images: Labelled, console: Console, what: str) -> Sample:
    """Run the model over all images of a role."""
    sample = run_model(fit, runtime, images, console, what)
    if missing := len(images.records) - len(sample.y_true):
        raise DataError(
            f"{missing} images that could be read at the start of the training cannot be read now.",
            remedy="Bring them back; the same command then resumes from the trained network.",
            code="images_gone",
        )
    return sample


def _calibrate(candidate: Candidate, about: About, runtime: Runtime, images: Labelled, console: Console) -> Fit:
    material, recipe = candidate.material, candidate.recipe
    batch_prior = answer_prior(material.labels[material.rows("train")], len(material.codes), recipe)
    uncalibrated = Calibration(1.0, tuple(float(p) for p in batch_prior))
    fit = Fit(material.codes, candidate.stem.spec, uncalibrated, candidate.case_mix, about.modality)
    fit = fit.calibrated_on(_answers(fit, runtime, images, console, "Outputs, calibrate").known, seed=recipe.seed)
    if fit.reason is not None:
        console.print(f"The probabilities are not calibrated: {fit.reason}.", style="yellow")
    return fit


def training_mix(material: Material) -> CaseMix:
    """Return how common each class is among the lesions of the training images."""
    return CaseMix(TRAINING, dict(zip(material.codes, material.lesion_prior(), strict=True)))


def _test_answers(candidate: Candidate, test: Sample) -> AnswersOnTest:
    material = candidate.material
    return AnswersOnTest(
        hashes=tuple(material.hashes[i][:HASH_CHARS] for i in material.rows("test")),
        lesions=test.lesions,
        truth=test.y_true,
        model=test.decision,
        probe=candidate.probe_test.argmax(axis=1),
        majority=int(np.bincount(material.labels[material.rows("train")]).argmax()),
    )


def _card(candidate: Candidate, about: About, dataset: Dataset, fit: Fit, test: Sample) -> dict[str, Any]:
    material, row, history = candidate.material, candidate.stem.row, candidate.history
    names = [display_name(code) for code in material.codes]
    scope = about.scope or f"Reads images like those it was trained on, of {len(names)} classes: {', '.join(names)}."
    lesions, seed = test.lesions.tolist(), candidate.recipe.seed
    metrics = score(test.y_true, test.probability, test.decision, lesions, material.codes, mix=fit.case_mix, seed=seed)
    best = history.rows[history.best_epoch]
    return {
        "name": about.name,
        "version": about.version,
        "created": datetime.date.today().isoformat(),
        "scope": scope,
        "modality": about.modality,
        "classes": [{"code": c, "name": n} for c, n in zip(material.codes, names, strict=True)],
        "input": candidate.stem.spec.as_dict(),
        "backbone": {"name": row.name, "title": row.title, "weights": candidate.recipe.weights, "licence": row.licence},
        **fit.as_dict(),
        "training_mix": training_mix(material).as_dict(),
        "recipe": candidate.recipe.as_dict(),
        "data": _data(candidate, about, dataset),
        "training": {
            "epochs_done": sum("train_loss" in row for row in history.rows),
            "best_epoch": history.best_epoch,
            "interrupted": history.interrupted,
            "stopped": history.stopped,
            **{key: best[key] for key in ("select_macro_auc", "select_balanced_accuracy")},
        },
        "metrics": {"split": "test role", **metrics},
        "probe": _probe(candidate, test),
        "licence": {"code": "Apache-2.0", "weights": about.weights_licence},
        "versions": versions(),
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


def _probe(candidate: Candidate, test: Sample) -> dict[str, Any]:
    """Score the probe on the same test images, and the model against it in pairs."""
    probe, seed, lesions = candidate.probe, candidate.recipe.seed, test.lesions.tolist()
    decision = candidate.probe_test.argmax(axis=1)
    scored = score(test.y_true, candidate.probe_test, decision, lesions, candidate.material.codes, seed=seed)
    return {
        **{name: scored[name] for name in ("accuracy", "balanced_accuracy", "macro_auc")},
        "model_minus_probe_balanced_accuracy": paired_difference(
            test.y_true, test.decision, decision, lesions, seed=seed
        ),
        "regularisation_c": probe.strength,
        "converged": probe.converged,
        "strength_at_edge": probe.strength in (STRENGTHS[0], STRENGTHS[-1]),
    }


def _optional(console: Console, write: Callable[[], object]) -> None:
    """Write something that the model does not need; a failure is a warning."""
    try:
        write()
    except (OSError, StorageError) as error:
        console.print(f"Warning: {error}", style="yellow")


def _write_beside(candidate: Candidate, test: Sample, out: Path, console: Console) -> None:
    """Write the predictions of the test images, and the history as a table and a plot."""
    history = candidate.history
    columns = list(dict.fromkeys(name for row in history.rows for name in row))
    epochs: list[Sequence[object]] = [[row.get(name, "") for name in columns] for row in history.rows]
    _optional(console, lambda: write_csv(out / "test_predictions.csv", _predictions(candidate, test)))
    _optional(console, lambda: write_csv(out / "history.csv", [columns, *epochs]))
    _optional(console, lambda: plot_history(history.rows, out / "history.png", kept=history.best_epoch))


def _predictions(candidate: Candidate, test: Sample) -> list[list[object]]:
    """Return the test images with the probabilities of model (`p_CODE`) and probe (`q_CODE`), with a header."""
    material, codes = candidate.material, candidate.material.codes
    head = ["image", "lesion_id", "diagnosis", "decision", "probe_decision", *(f"{k}_{c}" for k in "pq" for c in codes)]
    rows: list[list[object]] = [[*head]]
    for index, record in enumerate(material.pick(material.rows("test"))):
        probe = candidate.probe_test[index]
        answers = (codes[test.decision[index]], codes[probe.argmax()])
        shares = (f"{p:.6f}" for p in (*test.probability[index], *probe))
        rows.append([record.image, record.lesion_id, record.diagnosis, *answers, *shares])
    return rows


def _print_report(card: Mapping[str, Any], out: Path, console: Console) -> None:
    """Print the main figures and the contents of the run folder, one line each."""
    metrics, probe = card["metrics"], card["probe"]
    difference = probe["model_minus_probe_balanced_accuracy"]
    leaky = " (LEAKY: these figures are too good)" if card["data"]["leaky"] else ""
    lines = [
        f"Test on {metrics['n']} images of {metrics['n_lesions']} lesions{leaky}:",
        f"  balanced accuracy {figure(metrics['balanced_accuracy'])}, accuracy {figure(metrics['accuracy'])}",
        f"  AUC {figure(metrics['macro_auc'])}",
        f"  linear probe: balanced accuracy {figure(probe['balanced_accuracy'])}; difference {figure(difference)}",
        *(f"  {words}" for words in card["baselines"]["words"]),
        *_trust_lines(card["trust"]),
        f"In {out}:",
        *(f"  {name:22}{what}" for name, what in _FILES.items() if (out / name).exists()),
        f"Predict with it: dermlens predict IMAGE --model {out}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def _trust_lines(facts: Mapping[str, Any]) -> list[str]:
    """What the model reaches where it knows its limits."""
    if not facts["measured"]:
        return []
    ok, sets = facts["measured"]["status"]["ok"], facts["measured"]["prediction_sets"]
    accuracy = "" if ok["accuracy"] is None else f", with an accuracy of {ok['accuracy']:.3f}"
    coverage = (
        ""
        if sets is None
        else f"; what cannot be ruled out holds the diagnosis for {figure(sets['coverage'])} of the lesions"
    )
    lines = [f"  answers without a warning: {ok['share']:.1%}{accuracy}{coverage}"]
    if facts["novelty"] is None:
        lines.append("  too few calibration lesions to recognise unfamiliar images: it will answer every image")
    return lines


_FILES = {
    "bundle": "the model: everything that predicting needs",
    "bundle/MODEL_CARD.md": "what it is and how it was tested",
    "model.keras": "the whole Keras model",
    "recipe.json": "every setting",
    "history.csv": "the training, epoch by epoch",
    "history.png": "the same as a plot",
    "logs": "the same for TensorBoard: tensorboard --logdir RUN/logs",
    "audit.json": "what the audit found",
    "split.csv": "every image with its role",
    "checkpoint.npz": "where the training was stopped; --resume continues from it",
    "seen.json": "the images that the model has seen, by role",
    "test_predictions.csv": "every test image with the probabilities of model (p_) and probe (q_)",
    "cache": "trunk features or decoded images; delete it when you are done",
}
