"""The accuracy protocol: every method on the same five folds, stratified and grouped by lesion.

    python benchmarks/accuracy.py --data DATA --out runs/accuracy --methods top full --folds 0
    python benchmarks/accuracy.py --data DATA --out runs/accuracy --table        # only the table of what is there

DATA holds `ham10000/`, `isic9/` and `isic_reference.csv`; both sets are repaired and joined as for the embedded model
(eight classes). A fold is tested once, with one image of each lesion (the sharpest copy); all choices of a method
(epoch, calibration) are made on lesions of the other four folds. Each fold is a run folder of its own and goes on where
it was stopped. Linear probe and majority are read from any method's folds. Writes `accuracy.json`, `accuracy.md` and
two plots into --out: pooled figures with 95 % intervals over lesions, the mean over folds, the recall of each class,
minutes and peak memory of a fold. `--keep DIR` keeps each finished fold as a small file, so that the table can be built
on several days and machines. `--isic9` is the second part: ISIC-9 by itself, with its official Test (`isic9.py`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import isic9  # both beside this file
from accuracy_table import start_run, write_table

FOLDS = 5
INSIDE = {"train": 0.83, "select": 0.07, "calibrate": 0.10}
METHODS: dict[str, dict[str, Any]] = {
    "head": {"fine_tune": "head", "head_epochs": 30},
    "top": {"fine_tune": "top", "cut_block": 7, "views": 8, "epochs": 8, "learning_rate": 4e-4},
    "top_5": {"fine_tune": "top", "cut_block": 5, "views": 8, "epochs": 10, "learning_rate": 4e-4},
    "full": {"fine_tune": "full", "epochs": 6},  # as many images as the student sees
    "full_12": {"fine_tune": "full", "epochs": 12},  # twice as long: at six it was still gaining
    "embedded": {"fine_tune": "full", "epochs": 12, "artefacts": 0.25, "patience": 0},  # scripts/default_model
    "full_260": {
        "fine_tune": "full",
        "size_px": 260,
        "epochs": 12,
        "learning_rate": 4e-4,
        "layer_decay": 0.93,
        "artefacts": 0.25,
        "patience": 0,
    },
    "student": {},
}


def run_fold(data: Path, out: Path, method: str, fold: int, settings: Mapping[str, Any]) -> None:
    """Train one method on one fold in this process."""
    from rich.console import Console

    from dermlens.audit.findings import hash_records
    from dermlens.networks.backend import load_tensorflow
    from dermlens.training.split import assign_folds, assign_roles
    from scripts.default_model.dataset import default_dataset

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
    """Run a fold in a process of its own, unless it is there."""
    command = ["--data", str(options.data), "--out", str(options.out), "--one", method, str(fold)]
    start_run(options.out / method / f"fold{fold}", Path(__file__), command, f"{method}, fold {fold}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DERMLENS_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["top"])
    parser.add_argument("--folds", nargs="+", type=int, choices=range(FOLDS), default=[0])
    parser.add_argument("--isic9", action="store_true", help="ISIC-9 by itself instead of the folds; see isic9.py")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--keep", type=Path, help="folder for finished folds as small files; those there count as well")
    parser.add_argument("--onto", type=Path, help="an earlier accuracy.json, whose rows with more folds stay")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--one-isic9", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.data = Path(options.data) if options.data else None
    if options.data is None and not options.table:
        raise SystemExit("Name the data folder with --data or DERMLENS_DATA.")
    if not options.table and not options.data.is_dir():
        raise SystemExit(f"The data folder {options.data} does not exist. It should hold ham10000/ and isic9/.")
    if options.one:
        method, fold = options.one[0], int(options.one[1])
        run_fold(options.data, options.out / method / f"fold{fold}", method, fold, METHODS[method])
    elif options.one_isic9:
        isic9.run_isic9(options.data, options.out, *options.one_isic9)
    elif options.isic9:
        if not options.table:
            isic9.run_all(options, Path(__file__))
        print("\n".join(isic9.write_isic9(options.out)))
    else:
        for fold in [] if options.table else options.folds:
            for method in options.methods:
                start_fold(options, method, fold)
        print("\n".join(write_table(options.out, list(METHODS), FOLDS, options.keep, options.onto)))


if __name__ == "__main__":
    main()
