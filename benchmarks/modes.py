"""Head, top and full against each other: how good, how long, and what frozen batch normalisation is worth.

    DERMLENS_DATA=/path/to/data python benchmarks/modes.py --out runs/modes [--epochs 6] [--target 0.55]
                                                           [--only head top_7 full]

Trains on 20 % of the lesions of HAM10000 (10,015 images, labels by the ISIC 2019 reference, seed 0) and scores on 60 %.
Each variant has a run folder in --out and goes on where it was stopped; a finished one is only read. Prints a Markdown
table: balanced accuracy with its interval over lesions, the difference to `top_7` in pairs, the time of the run, and
how long it took until the select lesions had the balanced accuracy of `--target`, audit and caches included.
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


def told(run: Path, target: float) -> str:
    """Return that as a cell of the table."""
    try:
        minutes = minutes_to(run, target)
    except SystemExit:
        return "stopped in between"
    return "never" if minutes is None else f"{minutes:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DERMLENS_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--target", type=float, default=0.55)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if (options.out / name / "bundle").exists():
            continue
        print(f"== {name}", flush=True)
        train(options.data, options.out / name, VARIANTS[name], options.epochs)
    done = [name for name in options.only if (options.out / name / "bundle").exists()]
    base = decisions(options.out / BASE) if BASE in done else None
    print(
        "| variant | balanced accuracy | difference to top_7 | AUC | epoch kept | minutes "
        f"| minutes to {options.target} on select |\n|---|---|---|---|---|---|---|"
    )
    for name in done:
        metrics = json.loads((options.out / name / "bundle" / "bundle.json").read_text())["metrics"]
        figures = {key: metrics[key] for key in ("balanced_accuracy", "macro_auc")}
        cells = [f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]" for f in figures.values()]
        difference = "" if base is None or name == BASE else compared(decisions(options.out / name), base)
        kept = json.loads((options.out / name / "state.json").read_text())["history"]["best_epoch"]
        minutes = float((options.out / name).with_suffix(".seconds").read_text()) / 60
        reached = told(options.out / name, options.target)
        print(f"| {name} | {cells[0]} | {difference} | {cells[1]} | {kept} | {minutes:.0f} | {reached} |")


def compared(rows: list[dict[str, str]], base: list[dict[str, str]]) -> str:
    codes = sorted({row["diagnosis"] for row in rows})
    truth = [codes.index(row["diagnosis"]) for row in rows]
    lesions = [row["lesion_id"] for row in rows]
    ours, theirs = ([codes.index(row["decision"]) for row in part] for part in (rows, base))
    found = paired_difference(truth, ours, theirs, lesions)
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


if __name__ == "__main__":
    main()
