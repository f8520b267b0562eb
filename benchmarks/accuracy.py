"""The accuracy protocol: every method on the same five folds, stratified and grouped by lesion.

    python benchmarks/accuracy.py --data DATA --out runs/accuracy --methods top full --folds 0
    python benchmarks/accuracy.py --data DATA --out runs/accuracy --table        # only the table of what is there

DATA holds `ham10000/`, `isic9/` and `isic_reference.csv`; both sets are repaired and joined as for the embedded model
(eight classes). A fold is tested once, with one image of each lesion (the sharpest copy); all choices of a method
(epoch, calibration) are made on lesions of the other four folds. Each fold is a run folder of its own and goes on where
it was stopped. The linear probe is read from any method's folds. Writes `accuracy.json` and `accuracy.md` into --out:
pooled figures with 95 % intervals over lesions, the mean over folds, minutes and peak memory of a fold.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

FOLDS = 5
INSIDE = {"train": 0.83, "select": 0.07, "calibrate": 0.10}
METHODS: dict[str, dict[str, Any]] = {
    "head": {"fine_tune": "head", "head_epochs": 30},
    "top": {"fine_tune": "top", "cut_block": 7, "views": 8, "epochs": 9},
    "top_fresh": {"fine_tune": "top", "cut_block": 7, "views": 0, "epochs": 15},
    "top_4_fresh": {"fine_tune": "top", "cut_block": 4, "views": 0, "epochs": 15},
    "full": {"fine_tune": "full", "epochs": 8},
    "student": {},
}
PREFERENCE = ("images_224", "isic9", "images_200x150")


def run_fold(data: Path, out: Path, method: str, fold: int, settings: Mapping[str, Any]) -> None:
    """Train one method on one fold in this process."""
    from rich.console import Console

    from dermlens.audit.findings import hash_records
    from dermlens.training.default_model import default_dataset
    from dermlens.training.quiet import load_tensorflow
    from dermlens.training.split import assign_folds, assign_roles

    console = Console(width=140)
    dataset = default_dataset(data, console)
    records = [replace(record, split=None) for record in dataset.records]
    hashes = hash_records(records)
    folds = assign_folds(records, hashes, folds=FOLDS, seed=0)
    rest = [i for i, number in enumerate(folds) if number != fold]
    roles = assign_roles([records[i] for i in rest], [hashes[i] for i in rest], fractions=INSIDE, seed=0)
    role_of = dict(zip(rest, roles, strict=True))
    split = tuple(replace(record, split=role_of.get(i, "test")) for i, record in enumerate(records))
    load_tensorflow()
    if method == "student":
        from student import train_student  # beside this file

        train_student(split, out)
        return
    from dermlens.training.recipe import make_recipe
    from dermlens.training.run import About, train

    train(replace(dataset, records=split), out, make_recipe(dict(settings)), About(name=method), console=console)


def start_fold(options: argparse.Namespace, method: str, fold: int) -> None:
    """Run a fold in a process of its own; keep its minutes, over all tries, and its peak memory."""
    out = options.out / method / f"fold{fold}"
    if (out / "test_predictions.csv").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    cost_file = out / "cost.json"
    cost = json.loads(cost_file.read_text()) if cost_file.exists() else {"minutes": 0.0, "peak_gb": 0.0}
    command = [sys.executable, __file__, "--data", str(options.data), "--out", str(options.out)]
    print(f"== {method}, fold {fold}", flush=True)
    start = time.monotonic()
    process = subprocess.Popen([*command, "--one", method, str(fold)])
    try:
        _, status, usage = os.wait4(process.pid, 0)
        cost["peak_gb"] = max(cost["peak_gb"], usage.ru_maxrss * 1024 / 1e9)
    finally:
        cost["minutes"] += (time.monotonic() - start) / 60
        cost_file.write_text(json.dumps(cost))
    if status:
        raise SystemExit(f"{method}, fold {fold} failed; the same command goes on from what is there.")


def predictions(out: Path) -> dict[str, np.ndarray]:
    """Return one row a lesion of a finished fold: truth, decision, probe, probability, lesion."""
    with (out / "split.csv").open(newline="", encoding="utf-8") as file:
        facts = {row["image"]: row for row in csv.DictReader(file)}
    with (out / "test_predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    codes = sorted(name[2:] for name in rows[0] if name.startswith("p_"))

    def sharpest(row: Mapping[str, str]) -> tuple[int, str]:
        source = facts[row["image"]]["source"]
        return (PREFERENCE.index(source) if source in PREFERENCE else len(PREFERENCE), row["image"])

    best: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=sharpest):
        best.setdefault(row["lesion_id"] or row["image"], row)
    kept = [best[lesion] for lesion in sorted(best)]

    def index(name: str) -> np.ndarray:
        return np.array([codes.index(row[name]) for row in kept])

    probability = np.array([[float(row[f"p_{code}"]) for code in codes] for row in kept])
    return {
        "truth": index("diagnosis"),
        "decision": index("decision"),
        "probe": index("probe_decision"),
        "probability": probability / probability.sum(axis=1, keepdims=True),
        "lesion": np.array(sorted(best)),
        "codes": np.array(codes),
    }


def summarise(folds: Mapping[int, dict[str, np.ndarray]], decision: str) -> dict[str, Any]:
    """Score the pooled folds of one method; `decision` names whose decisions."""
    from dermlens.evaluation.bootstrap import paired_difference
    from dermlens.evaluation.metrics import balanced_accuracy_score
    from dermlens.evaluation.scores import score

    pooled = {
        key: np.concatenate([part[key] for part in folds.values()]) for key in ("truth", "decision", "probe", "lesion")
    }
    codes = [str(code) for code in next(iter(folds.values()))["codes"]]
    truth, decided = pooled["truth"], pooled[decision]
    if decision == "probe":
        probability = np.eye(len(codes))[decided]
    else:
        probability = np.concatenate([part["probability"] for part in folds.values()])
    scores = score(truth, probability, decided, pooled["lesion"], codes)
    each = [float(balanced_accuracy_score(part["truth"], part[decision])) for part in folds.values()]
    return {
        "folds": sorted(folds),
        "balanced_accuracy_by_fold": each,
        "metrics": scores,
        "minus_probe": paired_difference(truth, decided, pooled["probe"], pooled["lesion"]),
    }


def write_table(out: Path) -> None:
    """Write what the finished folds of --out show."""
    found: dict[str, Any] = {}
    for method in [name for name in METHODS if (out / name).is_dir()]:
        folds = {
            f: predictions(out / method / f"fold{f}") for f in range(FOLDS) if _finished(out / method / f"fold{f}")
        }
        if not folds:
            continue
        costs = [json.loads((out / method / f"fold{f}" / "cost.json").read_text()) for f in folds]
        summary = summarise(folds, "decision")
        summary["minutes"] = float(np.mean([cost["minutes"] for cost in costs]))
        summary["peak_gb"] = max(cost["peak_gb"] for cost in costs)
        found[method] = summary
        best = found.get("linear probe")
        if method != "student" and (best is None or len(folds) > len(best["folds"])):
            found["linear probe"] = summarise(folds, "probe")
    lines = [
        "| method | folds | balanced accuracy | mean of folds | accuracy | AUC | melanoma AUC | "
        "melanoma sensitivity at 90 % specificity | minus probe | minutes a fold | peak GB |",
        "|" + "---|" * 11,
    ]
    lines += [_row(name, summary) for name, summary in found.items()]
    (out / "accuracy.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "accuracy.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _finished(folder: Path) -> bool:
    return (folder / "test_predictions.csv").exists() and (folder / "cost.json").exists()


def _row(name: str, summary: Mapping[str, Any]) -> str:
    metrics = summary["metrics"]
    melanoma = metrics["per_class"]["MEL"]
    only_decisions = name == "linear probe"
    cells = [
        name,
        ", ".join(map(str, summary["folds"])),
        _figure(metrics["balanced_accuracy"]),
        f"{np.mean(summary['balanced_accuracy_by_fold']):.3f}",
        _figure(metrics["accuracy"]),
        "" if only_decisions else _figure(metrics["macro_auc"]),
        "" if only_decisions else _figure(melanoma["auc"]),
        "" if only_decisions else _figure(melanoma["sensitivity_at_90_specificity"]),
        "" if only_decisions or name == "student" else _figure(summary["minus_probe"]),
        f"{summary['minutes']:.0f}" if "minutes" in summary else "",
        f"{summary['peak_gb']:.1f}" if "peak_gb" in summary else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _figure(figure: Mapping[str, Any]) -> str:
    limits = "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure['value']:.3f}{limits}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DERMLENS_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["top"])
    parser.add_argument("--folds", nargs="+", type=int, choices=range(FOLDS), default=[0])
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.data = Path(options.data) if options.data else None
    if options.one:
        method, fold = options.one[0], int(options.one[1])
        run_fold(options.data, options.out / method / f"fold{fold}", method, fold, METHODS[method])
        return
    if not options.table:
        if options.data is None:
            raise SystemExit("Name the data folder with --data or DERMLENS_DATA.")
        for fold in options.folds:
            for method in options.methods:
                start_fold(options, method, fold)
    write_table(options.out)


if __name__ == "__main__":
    main()
