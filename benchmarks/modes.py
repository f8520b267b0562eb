"""Head, top and full against each other: how good, how long, and what frozen batch normalisation is worth.

    DERMLENS_DATA=/path/to/data python benchmarks/modes.py --runs runs/modes [--epochs 6] [--target 0.55]
                    [--only head top_7 full] [--out benchmarks/results] [--page docs/speed.md]

Trains on 20 % of the lesions of HAM10000 (10,015 images, labels by the ISIC 2019 reference, seed 0) and scores on 60 %.
Each variant has a run folder in --runs and goes on where it was stopped; a finished one is only read. Writes modes.json
and a table into --out: balanced accuracy with its interval over lesions, the difference to `top_7` in pairs, the time
of the run, and how long it took until the select lesions had the balanced accuracy of `--target`, audit and caches
included.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from folds import markdown, write  # all beside this file
from measure import machine
from timeline import stages

from dermlens.evaluation.bootstrap import paired_difference

SHARES = ["train=0.2", "select=0.1", "calibrate=0.1", "test=0.6"]
VARIANTS = {
    "head": ["fine_tune=head"],
    "top_10": ["fine_tune=top", "cut_block=10"],
    "top_7": ["fine_tune=top", "cut_block=7"],
    "top_7_fresh_views": ["fine_tune=top", "cut_block=7", "views=0"],
    "top_7_rate_6e-4": ["fine_tune=top", "cut_block=7", "learning_rate=6e-4"],
    "top_7_batch_norm_updated": ["fine_tune=top", "cut_block=7", "batch_norm=updated"],
    "full": ["fine_tune=full"],
}
BASE = "top_7"


def train(data: Path, out: Path, settings: list[str], epochs: int) -> None:
    """Run the command line as a user would, and keep the time of all its tries together."""
    took = out.with_suffix(".seconds")
    before = float(took.read_text()) if took.exists() else 0.0
    command = [sys.executable, "-m", "dermlens", "train", str(data / "ham10000"), "--out", str(out)]
    command += ["--reference", str(data / "isic_reference.csv"), "--task", "isic2019", "--seed", "0"]
    for setting in [*SHARES, f"epochs={epochs}", "patience=0", *settings]:
        command += ["--set", setting]
    start = time.monotonic()
    try:
        subprocess.run(command, check=True)
    finally:
        took.write_text(str(before + time.monotonic() - start))


def decisions(out: Path) -> list[dict[str, str]]:
    with (out / "test_predictions.csv").open(newline="", encoding="utf-8") as file:
        return sorted(csv.DictReader(file), key=lambda row: row["image"])


def minutes_to(run: Path, target: float) -> float | None:
    """Return the minutes from the start of a run until the select lesions had a balanced accuracy; None: never."""
    found = stages(run)
    mode = json.loads((run / "recipe.json").read_text(encoding="utf-8"))["fine_tune"]
    names = [name for name, _ in found]
    passed_s = sum(seconds for _, seconds in found[: names.index("head" if mode == "head" else "fine-tune")])
    with (run / "history.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            passed_s += float(row.get("seconds") or 0)
            if float(row["select_balanced_accuracy"]) >= target:
                return passed_s / 60
    return None


def compared(rows: list[dict[str, str]], base: list[dict[str, str]]) -> dict[str, Any]:
    """Return the difference in balanced accuracy to the decisions of another run on the same lesions."""
    codes = sorted({row["diagnosis"] for row in rows})
    truth = [codes.index(row["diagnosis"]) for row in rows]
    lesions = [row["lesion_id"] for row in rows]
    ours, theirs = ([codes.index(row["decision"]) for row in part] for part in (rows, base))
    return paired_difference(truth, ours, theirs, lesions)


def table(runs: Path, names: list[str], target: float) -> tuple[dict[str, Any], list[str]]:
    """Return the figures of the finished runs, and the table of them."""
    base = decisions(runs / BASE) if BASE in names else None
    found: dict[str, Any] = {"target": target}
    rows: list[list[Any]] = []
    for name in names:
        metrics = json.loads((runs / name / "bundle" / "bundle.json").read_text(encoding="utf-8"))["metrics"]
        row = {key: metrics[key] for key in ("balanced_accuracy", "macro_auc")}
        if base is not None and name != BASE:
            row["minus_top_7"] = compared(decisions(runs / name), base)
        row["best_epoch"] = json.loads((runs / name / "state.json").read_text())["history"]["best_epoch"]
        row["minutes"] = float((runs / name).with_suffix(".seconds").read_text()) / 60
        try:
            row["minutes_to_target"] = reached = minutes_to(runs / name, target)
            told = "never" if reached is None else f"{reached:.1f}"
        except SystemExit:  # of a run that was stopped in between it cannot be told
            told = "stopped in between"
        found[name] = row
        cells = [row["balanced_accuracy"], row.get("minus_top_7", ""), row["macro_auc"], row["best_epoch"]]
        rows.append([name, *cells, f"{row['minutes']:.0f}", told])
    header = ["variant", "balanced accuracy", "minus top_7, in pairs", "AUC", "epoch kept", "minutes"]
    return found, markdown([*header, f"minutes to {target} on select"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DERMLENS_DATA"))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--target", type=float, default=0.55)
    parser.add_argument("--out", type=Path, default=Path("runs/protocol"))
    parser.add_argument("--page", type=Path, help="also put the table between this benchmark's marks in this document")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if (options.runs / name / "bundle").exists():
            continue
        print(f"== {name}", flush=True)
        train(Path(options.data), options.runs / name, VARIANTS[name], options.epochs)
    done = [name for name in options.only if (options.runs / name / "bundle").exists()]
    found, lines = table(options.runs, done, options.target)
    write(options, "modes", {"machine": machine(), "epochs": options.epochs, **found}, lines, None)


if __name__ == "__main__":
    main()
