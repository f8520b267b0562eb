"""What a run leaves behind: the Keras model, the split, the history, every test prediction, and the last words."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
from rich.console import Console

from dermlens.bundle.bundle import HASH_CHARS, embedded_models
from dermlens.bundle.card import Card
from dermlens.errors import StorageError, WeightsError
from dermlens.text import figure
from dermlens.training.fit import History
from dermlens.training.material import Material
from dermlens.training.split import ROLES


def save_keras(model: keras.Model, path: Path) -> None:
    """Save the whole model beside its place and move it there.

    Raises:
        StorageError: no space or no permission; an earlier file is untouched.
    """
    temporary = path.with_name(f".{path.stem}-new.keras")
    try:
        model.save(temporary)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"The Keras model could not be saved to {path}: {error.strerror or error}.",
            remedy="Free some space; an earlier model there is unchanged.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_keras(model: str | Path) -> keras.Model:
    """Return the whole Keras model of a run, an ordinary `keras.Model`, to go on with in Keras as one likes.

    It takes RGB pixels as they are, 0..255, uint8 or float32 (n, h, w, 3), brought to size by
    `dermlens.data.images.load_image`, and gives [logits (n, classes), embedding (n, d), feature_map (n, h, w, d)].
    Logits are not calibrated: temperature, prior and decision rule stand in the run's bundle.

    Args:
        model: a run folder, a `.keras` file, or the name of an embedded model.

    Raises:
        WeightsError: there is no `.keras` file; the embedded models come without theirs.
    """
    path = Path(model)
    path = path if path.suffix == ".keras" else path / "model.keras"
    if path.is_file():
        return keras.models.load_model(path, safe_mode=True)
    if str(model) in embedded_models():
        raise WeightsError(
            f"The embedded model {str(model)!r} comes as an OpenVINO graph, without its Keras copy.",
            remedy="Make it with `make train-default DERMLENS_DATA=...`; it is then in runs/default/model.keras.",
            code="keras_missing",
        )
    raise WeightsError(
        f"There is no Keras model at {path}. `dermlens train` writes model.keras into its run folder.",
        remedy="Give the folder of a run, or make one with `dermlens train DATA --out RUN`.",
        code="keras_missing",
    )


def seen_by_role(
    material: Material, isic_ids_of_lesion: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, list[str]]]:
    """Return role -> {"content_hashes", "lesion_ids", "isic_ids"}: all that the model has met, by role."""
    result: dict[str, dict[str, list[str]]] = {}
    for role in ROLES:
        rows = material.rows(role)
        lesions = {r.lesion_id for r in material.pick(rows) if r.lesion_id}
        ids = {r.isic_id for r in material.pick(rows) if r.isic_id}
        ids |= {other for lesion in lesions for other in isic_ids_of_lesion.get(lesion, ())}
        result[role] = {
            "content_hashes": sorted({material.hashes[i][:HASH_CHARS] for i in rows}),
            "lesion_ids": sorted(lesions),
            "isic_ids": sorted(ids),
        }
    return result


def write_audit(path: Path, material: Material) -> None:
    """Write the findings of the audit as JSON, one object each."""
    findings = [asdict(finding) for finding in material.findings]
    path.write_text(json.dumps(findings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_split(path: Path, material: Material) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "diagnosis", "role", "lesion_id", "isic_id", "source", "sha256"])
        for record, role, digest in zip(material.records, material.roles, material.hashes, strict=True):
            writer.writerow(
                [
                    record.image,
                    record.diagnosis,
                    role,
                    record.lesion_id,
                    record.isic_id,
                    record.source,
                    digest,
                ]
            )
        for image in material.unreadable:
            writer.writerow([image, "", "unreadable", "", "", "", ""])


def write_history(path: Path, history: History) -> None:
    names = list(dict.fromkeys(name for row in history.rows for name in row))
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(history.rows)


def write_predictions(
    path: Path,
    material: Material,
    rows: np.ndarray,
    probability: np.ndarray,
    decision: np.ndarray,
    probe: np.ndarray,
) -> None:
    """Write the test images with the probabilities of model (`p_CODE`) and probe (`q_CODE`), each (n, classes)."""
    codes = material.codes
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        columns = [f"{kind}_{code}" for kind in "pq" for code in codes]
        writer.writerow(["image", "lesion_id", "diagnosis", "decision", "probe_decision", *columns])
        for index, row in enumerate(rows):
            record = material.records[row]
            shares = (f"{p:.6f}" for p in (*probability[index], *probe[index]))
            answers = (codes[decision[index]], codes[probe[index].argmax()])
            writer.writerow([record.image, record.lesion_id, record.diagnosis, *answers, *shares])


def print_report(card: Card, out: Path, console: Console) -> None:
    """Print the main figures and what stands in the run folder, one line each."""
    metrics, probe = card.metrics, card.probe
    difference = probe.model_minus_probe_balanced_accuracy
    leaky = " (LEAKY: these figures are too good)" if card.data.leaky else ""
    lines = [
        f"Test, {metrics.n} images of {metrics.n_lesions} lesions{leaky}",
        f"  balanced accuracy {figure(metrics.balanced_accuracy)}, accuracy {figure(metrics.accuracy)}",
        f"  AUC {figure(metrics.macro_auc)}",
        f"  linear probe: balanced accuracy {figure(probe.balanced_accuracy)}; difference {figure(difference)}",
        *(f"  {words}" for words in card.baselines.words),
        *_trust_lines(card),
        f"In {out}:",
        *(f"  {name:22}{what}" for name, what in _FILES.items() if (out / name).exists()),
        f"Predict with it: dermlens predict IMAGE --model {out}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _trust_lines(card: Card) -> list[str]:
    """What the model reaches where it knows its limits, in one line; none where it was not measured."""
    measured = card.trust.measured
    if measured is None:
        return []
    ok, sets = measured.status["ok"], measured.prediction_sets
    accuracy = "" if ok.accuracy is None else f", accuracy {ok.accuracy:.3f} there"
    held = "" if sets is None else f"; prediction sets hold the truth for {figure(sets['coverage'])} of the lesions"
    lines = [f"  answers without reserve: {ok.share:.1%}{accuracy}{held}"]
    if card.trust.novelty is None:
        lines.append("  too few calibration lesions to learn what is strange to it: it will answer for any picture")
    return lines


_FILES = {
    "bundle": "the model, all that predicting needs",
    "bundle/MODEL_CARD.md": "what it is, what it was tested on",
    "model.keras": "the whole Keras model",
    "recipe.json": "every setting",
    "history.csv": "the training, epoch by epoch",
    "history.png": "the same, drawn",
    "logs": "the same for TensorBoard: tensorboard --logdir RUN/logs",
    "audit.json": "what the audit found",
    "split.csv": "every image with its role",
    "checkpoint.npz": "where the training was stopped; --resume goes on from it",
    "seen.json": "what the model has met, by role",
    "test_predictions.csv": "every test image with the probabilities of model (p_) and probe (q_)",
    "cache": "trunk features or decoded images; delete it when you are done",
}
