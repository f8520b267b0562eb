"""What a run leaves behind: the Keras model, the split, the history, every test prediction, and the last words."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from dermlens.inference.bundle import HASH_CHARS
from dermlens.reporting.figures import figure
from dermlens.training.fit import History
from dermlens.training.material import Material
from dermlens.training.split import ROLES


def save_keras(model: keras.Model, path: Path) -> None:
    """Save the whole model beside its place and move it there."""
    temporary = path.with_name(f".{path.stem}-new.keras")
    model.save(temporary)
    temporary.replace(path)


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


def write_split(path: Path, material: Material) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
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
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(history.rows)


def write_predictions(
    path: Path,
    material: Material,
    rows: np.ndarray,
    probability: np.ndarray,
    decision: np.ndarray,
    probe_decision: np.ndarray,
) -> None:
    codes = material.codes
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "lesion_id", "diagnosis", "decision", "probe_decision", *(f"p_{c}" for c in codes)])
        for index, row in enumerate(rows):
            record = material.records[row]
            shares = (f"{p:.6f}" for p in probability[index])
            answers = (codes[decision[index]], codes[probe_decision[index]])
            writer.writerow([record.image, record.lesion_id, record.diagnosis, *answers, *shares])


def print_report(card: Mapping[str, Any], out: Path, console: Console) -> None:
    """Print the main figures and what stands in the run folder, one line each."""
    metrics, probe = card["metrics"], card["probe"]
    difference = probe["model_minus_probe_balanced_accuracy"]
    lines = [
        f"Test, {metrics['n']} images of {metrics['n_lesions']} lesions"
        + (" (LEAKY)" if card["data"]["leaky"] else ""),
        f"  balanced accuracy {figure(metrics['balanced_accuracy'])}, accuracy {figure(metrics['accuracy'])}",
        f"  AUC {figure(metrics['macro_auc'])}",
        f"  linear probe: balanced accuracy {figure(probe['balanced_accuracy'])}; difference {figure(difference)}",
        f"In {out}:",
        "  bundle/               the model: `dermlens predict IMAGE --model " + str(out) + "`",
        "  bundle/MODEL_CARD.md  what it is, what it was tested on",
        "  model.keras           the whole Keras model",
        "  history.csv, .png     the training, epoch by epoch",
        "  split.csv             every image with its role",
        "  test_predictions.csv  every test image with its probabilities",
        "  cache/                trunk features; delete it when you are done",
    ]
    for line in lines:
        console.print(line, highlight=False)
