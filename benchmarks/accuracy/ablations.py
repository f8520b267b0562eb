"""What each part of a recipe is worth: fold 0 of the protocol, trained again with one setting changed.

Needs fold 0 of `protocol --methods top --runs RUNS` and takes over its trunk features where the cut and the views are
the same, so a variant costs its training alone. Each is compared in pairs with the recipe, on the calibrate lesions (on
which a choice may rest: no weight was trained on them) and, for the report, on the test lesions of the fold. Every
variant is a run folder and resumes where it was stopped. Variants of an earlier result that are not at hand stay,
behind the recipe that they were compared with: another kind of processor gives other bits.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import CONSOLE
from benchmarks.accuracy.protocol import METHODS, train_fold
from benchmarks.folds import Fold, aligned, draws, is_finished, mean_figure, predictions, train_once
from benchmarks.report import markdown
from dermlens.bundle.bundle import Bundle, load_bundle
from dermlens.bundle.probabilities import probabilities
from dermlens.data.images import load_image
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import paired_difference, sampled_figure
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.reporting.progress import track

BASE, RECIPE = "top", "recipe"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "again": ("the recipe again", {}),
    "cut_5": ("blocks 6 to 16 trained", {"cut_block": 5}),
    "cut_10": ("blocks 11 to 16 trained", {"cut_block": 10}),
    "epochs_16": ("16 epochs", {"epochs": 16}),
    "batch_norm": ("batch norm updated", {"batch_norm": "updated"}),
    "no_mixup": ("without mixup", {"mixup": 0.0}),
    "adjusted": ("logit adjustment instead of balanced draws", {"class_balance": 0.0, "logit_adjustment": 1.0}),
    "as_they_come": ("no class balance", {"class_balance": 0.0}),
    "focal": ("focal loss", {"loss": "focal"}),
    "views_2": ("two cached views", {"views": 2}),
    "artefacts": ("artefacts drawn into half of the views", {"artefacts": 0.5}),
    "layer_decay": ("rate 0.8 of the block above", {"layer_decay": 0.8}),
    "px_260": ("Lite0 at 260 px", {"size_px": 260}),
    "lite1": ("Lite1 at 240 px", {"backbone": "lite1"}),
    "lite2": ("Lite2 at 260 px", {"backbone": "lite2", "batch_size": 48}),
}
CHOICES = {"only": tuple(VARIANTS)}
END_TO_END = {"full": "end to end, 6 epochs", "full_12": "end to end, 12 epochs"}
END_TO_END |= {"embedded": "end to end, 12 epochs, artefacts in a quarter of the views"}


def run(
    *, data: Path, runs: Path, only: tuple[str, ...] = tuple(VARIANTS), earlier: Mapping[str, Any]
) -> dict[str, Any]:
    """Train the variants that are not there yet and return each beside the recipe."""
    base = runs / BASE / "fold0"
    if not is_finished(base):
        raise SystemExit(f"{base} has no finished run. Train it: python -m benchmarks protocol --methods {BASE}")
    folders = {name: runs / "ablations" / name for name in VARIANTS}
    for name in only:
        if not is_finished(folders[name]):
            link_features(base, folders[name])
        settings = {**METHODS[BASE], **VARIANTS[name][1]}
        train_once(folders[name], train_fold, str(data), str(folders[name]), 0, settings)
    folders |= {name: runs / name / "fold0" for name in END_TO_END}
    labels = {RECIPE: "the recipe", **END_TO_END, **{name: label for name, (label, _) in VARIANTS.items()}}
    of_base = {role: answers(base, role, data) for role in ("calibrate", "test")}
    found: dict[str, dict[str, Any]] = {}
    for name, folder in {RECIPE: base, **{n: f for n, f in folders.items() if is_finished(f)}}.items():
        minutes = json.loads((folder / "cost.json").read_text())["minutes"]
        found[name] = {"what": labels[name], "minutes": minutes}
        for role, of_recipe in of_base.items():
            found[name][role] = compared(answers(folder, role, data), of_recipe)
    return with_earlier(found, earlier)


@dataclass(frozen=True)
class Answers:
    """What one network says of the calibrate or the test lesions: the fold's table, probability (n, classes)."""

    table: Fold
    probability: np.ndarray


def link_features(base: Path, out: Path) -> None:
    """Link the trunk features of `base` into `out`; a training of another trunk or other views makes its own."""
    for role in ("train", "select"):
        source, target = base / "cache" / role, out / "cache" / role
        if target.exists() or not (source / "features.npy").is_file():
            continue
        target.mkdir(parents=True)
        os.link(source / "features.npy", target / "features.npy")
        shutil.copy(source / "features.json", target / "features.json")


def answers(folder: Path, role: str, data: Path) -> Answers:
    """Return what the network of a run says of one image of each lesion of a role."""
    if role == "test":
        table = predictions(folder)
        return Answers(table, table["probability"])
    bundle = load_bundle(folder / "bundle")
    with (folder / "split.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["role"] == role]
    one = {row["lesion_id"] or row["image"]: row for row in sorted(rows, key=lambda row: row["image"], reverse=True)}
    chosen = [one[lesion] for lesion in sorted(one)]
    probability = probabilities(_logits(bundle, chosen, data), bundle.calibration, bundle.case_mix.of(bundle.codes))
    table = {
        "truth": np.array([bundle.codes.index(row["diagnosis"]) for row in chosen]),
        "lesion": np.array(sorted(one)),
        "codes": np.array(bundle.codes),
        "decision": probability.argmax(axis=1),
    }
    return Answers(table, probability)


def _logits(bundle: Bundle, rows: list[dict[str, str]], data: Path) -> np.ndarray:
    """Return the logits (n, classes) of images, framed as in the training."""
    from scripts.default_model.dataset import FRAME_ASPECT

    def pixels(row: Mapping[str, str]) -> np.ndarray:
        aspect = FRAME_ASPECT if row["source"] == "isic9" else None
        return load_image(data / row["image"], bundle.input_spec, frame_aspect=aspect)

    runtime, logits = Runtime(bundle.graph_path), []
    with ThreadPoolExecutor() as pool, track("Calibrate lesions", len(rows), CONSOLE) as advance:
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            logits.append(runtime.run(np.stack(list(pool.map(pixels, part)))).logits)
            advance(len(part))
    return np.concatenate(logits)


def compared(own: Answers, base: Answers) -> dict[str, Any]:
    """Return the figures of a variant, with the difference in pairs to the recipe."""
    truth, decision, probability = own.table["truth"], own.table["decision"], own.probability
    codes = [str(code) for code in own.table["codes"]]
    weights, melanoma = draws(truth), codes.index("MEL")
    counts = metrics.class_counts(truth, decision, len(codes), weights)
    balanced = metrics.sensitivity(counts)[:, np.unique(truth)].mean(axis=1)
    curves = (metrics.roc(truth == melanoma, probability[:, melanoma], part) for part in np.array_split(weights, 10))
    areas = np.concatenate([metrics.area(curve) for curve in curves])
    other = aligned(own.table, base.table, "decision")
    return {
        "balanced_accuracy": sampled_figure(balanced, reason="no lesions"),
        "log_loss": mean_figure(metrics.log_errors(truth, probability), weights),
        "melanoma_auc": sampled_figure(areas, reason="no melanoma"),
        "melanoma_sensitivity": mean_figure(decision == truth, weights * (truth == melanoma)),
        "minus_recipe": paired_difference(truth, decision, other, own.table["lesion"].tolist()),
    }


def with_earlier(found: Mapping[str, Mapping[str, Any]], earlier: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the rows, and behind them the variants of an earlier result that are not among them.

    A variant belongs to the last recipe above it. One of an earlier result stays with its variants, under a key of its
    own, unless it is the recipe of `found` or has no variant left.
    """
    groups: list[dict[str, Mapping[str, Any]]] = []
    for name, row in earlier.items():
        if _is_recipe(name):
            groups.append({RECIPE: row})
        elif name not in found:
            groups[-1][name] = row
    rows = dict(found)
    for group in groups:
        recipe = group.pop(RECIPE)
        if group and recipe["test"] != found[RECIPE]["test"]:
            rows[f"{RECIPE}, {sum(map(_is_recipe, rows)) + 1}"] = recipe
            rows |= group
        else:
            rows = {name: row for part in ({RECIPE: found[RECIPE]}, group, rows) for name, row in part.items()}
    return rows


def _is_recipe(name: str) -> bool:
    return name.startswith(RECIPE)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a line for each variant, behind its recipe."""
    header = ["fold 0 of `top`, changed", "calibrate: minus recipe", "test: balanced accuracy"]
    rows = []
    for name, row in found.items():
        calibrate, test = row["calibrate"], row["test"]
        gains = ["" if _is_recipe(name) else role["minus_recipe"] for role in (calibrate, test)]
        cells = [gains[0], test["balanced_accuracy"], gains[1]]
        label = f"**{row['what']}**" if _is_recipe(name) else row["what"]
        rows.append([label, *cells, f"{test['log_loss']['value']:.3f}", f"{row['minutes']:.0f}"])
    return markdown([*header, "minus recipe", "log loss", "minutes"], rows)
