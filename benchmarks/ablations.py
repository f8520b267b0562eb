"""What each part of the recipe is worth: fold 0 of the accuracy protocol, trained again with one setting changed.

    python benchmarks/ablations.py --data DATA --runs runs/accuracy [--only focal lite1] [--out benchmarks/results]
                                   [--onto benchmarks/results/ablations.json] [--page docs/accuracy.md]

Needs fold 0 of `accuracy.py --methods top` and takes over its trunk features where the cut and the views are the same,
so a variant costs its training alone. Each is compared in pairs with the recipe, on the calibrate lesions (on which a
choice may rest: no weight was trained on them) and, for the report, on the test lesions of the fold. The networks are
those of the plain view. Methods of `accuracy.py` that were trained end to end stand in the same table, where their
fold 0 is at hand. Every variant is a run folder, so it can be stopped at any time. The recipe does not give the
same bits on another kind of processor: `--onto` keeps an earlier table's variants that are not at hand, behind the
recipe that they were compared with.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accuracy  # all beside this file
import numpy as np
from accuracy_table import Fold, aligned, predictions, start_run
from fold_views import scored
from folds import arguments, draws, markdown, mean_figure, outputs_of, records_of, write
from rich.console import Console

from dermlens.bundle.bundle import load_bundle
from dermlens.bundle.decision import decide, probabilities
from dermlens.evaluation.bootstrap import paired_difference

BASE, RECIPE = "top", "recipe"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "by_auc": ("the recipe again, its epoch kept by AUC", {}),
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
METHODS = {  # method: what it is; of accuracy.py: shown where their fold 0 is finished, never trained here
    "full": "end to end, 6 epochs",
    "full_12": "end to end, 12 epochs",
    "embedded": "end to end, 12 epochs, artefacts in a quarter of the views",
    "full_260": "end to end, 12 epochs at 260 px, artefacts, a rate falling by block",
}


@dataclass(frozen=True)
class Answers:
    """What one network says of the calibrate or the test lesions: the fold's table, probability (n, classes)."""

    table: Fold
    probability: np.ndarray


def lend_features(base: Path, out: Path) -> None:
    """Link the trunk features of `base` into `out`; a training of another trunk or other views makes its own."""
    for role in ("train", "select"):
        source, target = base / "cache" / role, out / "cache" / role
        if target.exists() or not (source / "features.npy").is_file():
            continue
        target.mkdir(parents=True)
        os.link(source / "features.npy", target / "features.npy")
        shutil.copy(source / "features.json", target / "features.json")


def answers(folder: Path, role: str, data: Path, console: Console) -> Answers:
    """Return what the network of a run says of one image of each lesion of a role."""
    if role == "test":
        table = predictions(folder)
        return Answers(table, table["probability"])
    bundle = load_bundle(folder / "bundle")
    with (folder / "split.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["role"] == role]
    one = {row["lesion_id"] or row["image"]: row for row in sorted(rows, key=lambda row: row["image"], reverse=True)}
    kept = [one[lesion] for lesion in sorted(one)]
    table = {
        "truth": np.array([bundle.codes.index(row["diagnosis"]) for row in kept]),
        "lesion": np.array(sorted(one)),
        **{key: np.array([row[key] for row in kept]) for key in ("image", "source")},
        "codes": np.array(bundle.codes),
    }
    logits, _ = outputs_of(bundle, records_of(table, data), range(1), console, f"{folder.parent.name}, {role}")
    probability = probabilities(logits[0], bundle.calibration)
    table["decision"] = decide(probability, bundle.calibration, bundle.decision_rule)
    return Answers(table, probability)


def compared(own: Answers, base: Answers) -> dict[str, Any]:
    """Return the figures of a variant, with the differences in pairs to the recipe."""
    truth, lesions = own.table["truth"], own.table["lesion"].tolist()
    codes = [str(code) for code in own.table["codes"]]
    weights = draws(truth)
    found = scored(truth, own.probability, own.table["decision"], weights, codes)
    found["melanoma_sensitivity"] = mean_figure(own.table["decision"] == truth, weights * (truth == codes.index("MEL")))
    other = aligned(own.table, base.table, "decision")
    found["minus_recipe"] = paired_difference(truth, own.table["decision"], other, lesions)
    return found


def with_earlier(found: Mapping[str, Mapping[str, Any]], earlier: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the rows, and behind them the variants of an earlier table that are not among them.

    A variant belongs to the last recipe above it. One of an earlier table stays with its variants, under a key of its
    own, unless it is the recipe of `found` or has no variant left.
    """
    groups: list[dict[str, Mapping[str, Any]]] = []
    for name, row in earlier.items():
        if is_recipe(name):
            groups.append({RECIPE: row})
        elif name not in found:
            groups[-1][name] = row
    rows = dict(found)
    for group in groups:
        recipe = group.pop(RECIPE)
        if group and recipe["test"] != found[RECIPE]["test"]:
            rows[f"{RECIPE}, {sum(map(is_recipe, rows)) + 1}"] = recipe
            rows |= group
        else:
            rows = {name: row for part in ({RECIPE: found[RECIPE]}, group, rows) for name, row in part.items()}
    return rows


def is_recipe(name: str) -> bool:
    return name.startswith(RECIPE)


def lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table, a row a variant."""
    header = ["fold 0", "calibrate: balanced accuracy", "minus recipe", "log loss", "melanoma AUC"]
    header += ["test: balanced accuracy", "minus recipe", "log loss", "melanoma sensitivity", "melanoma AUC", "minutes"]
    rows = []
    for name, row in found.items():
        calibrate, test = row["calibrate"], row["test"]
        gains = ["" if is_recipe(name) else role["minus_recipe"] for role in (calibrate, test)]
        what = f"**{row['what']}**, {row['machine']}" if is_recipe(name) else row["what"]
        cells = [what, calibrate["balanced_accuracy"], gains[0], calibrate["log_loss"], calibrate["melanoma_auc"]]
        cells += [test["balanced_accuracy"], gains[1], test["log_loss"], test.get("melanoma_sensitivity", "")]
        rows.append([*cells, test["melanoma_auc"], f"{row['minutes']:.0f}"])
    return [*markdown(header, rows), "", "![What a changed setting gains or loses](ablations.png)"]


def plot(found: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw the difference to the recipe with its interval, on calibrate and on test lesions."""
    from matplotlib.figure import Figure

    names = [name for name in found if not is_recipe(name)]
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(names)), layout="constrained")
    axis = figure.subplots()
    for shift, role in ((-0.12, "calibrate"), (0.12, "test")):
        gains = [found[name][role]["minus_recipe"] for name in names]
        values = np.array([gain["value"] for gain in gains])
        errors = [values - [gain["low"] for gain in gains], [gain["high"] for gain in gains] - values]
        axis.errorbar(values, np.arange(len(names)) + shift, xerr=errors, fmt="o", capsize=3, label=role)
    axis.axvline(0, color="grey", linewidth=1)
    axis.set_yticks(range(len(names)), [found[name]["what"] for name in names])
    axis.invert_yaxis()
    axis.set(xlabel="balanced accuracy minus the recipe's")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--onto", type=Path, help="an earlier ablations.json, whose variants that are not at hand stay")
    parser.add_argument("--one", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.data:
        raise SystemExit("Name the data folder with --data or DERMLENS_DATA.")
    data, base = Path(options.data), options.runs / BASE / "fold0"
    if not (base / "test_predictions.csv").is_file():
        raise SystemExit(f"{base} holds no finished run: train it with benchmarks/accuracy.py --methods {BASE}.")
    folders = {name: options.runs / "ablations" / name for name in VARIANTS}
    if options.one:
        settings = {**accuracy.METHODS[BASE], **VARIANTS[options.one][1]}
        accuracy.run_fold(data, folders[options.one], options.one, 0, settings)
        return
    for name in [] if options.table else options.only:
        if not (folders[name] / "test_predictions.csv").exists():
            lend_features(base, folders[name])
        command = ["--data", str(data), "--runs", str(options.runs), "--one", name]
        start_run(folders[name], Path(__file__), command, f"{VARIANTS[name][0]}, fold 0")
    console = Console(stderr=True, width=120)
    folders |= {name: options.runs / name / "fold0" for name in METHODS}
    runs = {RECIPE: base} | {n: f for n, f in folders.items() if (f / "test_predictions.csv").is_file()}
    told = {RECIPE: "the recipe", **METHODS, **{name: what for name, (what, _) in VARIANTS.items()}}
    of_base = {role: answers(base, role, data, console) for role in ("calibrate", "test")}
    found: dict[str, dict[str, Any]] = {}
    for name, folder in runs.items():
        cost = json.loads((folder / "cost.json").read_text())
        found[name] = {"what": told[name], "minutes": cost["minutes"], "machine": cost.get("processor", "")}
        for role, of_recipe in of_base.items():
            found[name][role] = compared(answers(folder, role, data, console), of_recipe)
    every = with_earlier(found, json.loads(options.onto.read_text())) if options.onto else found
    write(options, "ablations", every, lines(every), plot(every))


if __name__ == "__main__":
    main()
