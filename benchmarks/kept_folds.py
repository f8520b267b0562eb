"""Finished folds of the accuracy protocol as small files: its table can be built on several machines and days.

A run folder has gigabytes of features; what the table needs of a fold is one row a lesion, some 40 KB. Run by
`accuracy.py --keep DIR`, which writes `DIR/METHOD_foldN.npz` and reads those that other runs left there.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SHARES = ("probability", "probe_probability")
CLASSES = ("truth", "decision", "probe", "majority")
NAME = re.compile(r"(?P<method>\w+)_fold(?P<fold>\d+)\.npz")

Fold = dict[str, np.ndarray]


def write_fold(folder: Path, method: str, number: int, fold: Mapping[str, np.ndarray], cost: Mapping[str, Any]) -> Path:
    """Write a fold as `predictions` gives it, with its minutes and memory; shares are kept as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    small = {name: fold[name].astype(np.float16) for name in SHARES if name in fold}
    small |= {name: fold[name].astype(np.int16) for name in CLASSES if name in fold}
    rest = {name: array for name, array in fold.items() if name not in small}
    path = folder / f"{method}_fold{number}.npz"
    half = folder / f".{path.name}"
    with half.open("wb") as file:
        np.savez_compressed(file, cost=np.array(json.dumps(dict(cost))), **small, **rest)
    os.replace(half, path)
    return path


def read_folds(folder: Path) -> dict[str, dict[int, tuple[Fold, dict[str, Any]]]]:
    """Return method -> fold -> its table and its cost, of all that is kept in a folder; shares add up to 1."""
    found: dict[str, dict[int, tuple[Fold, dict[str, Any]]]] = {}
    for path in sorted(folder.glob("*.npz")):
        match = NAME.fullmatch(path.name)
        if not match:
            continue
        with np.load(path, allow_pickle=False) as file:
            fold = {name: file[name] for name in file.files if name != "cost"}
            cost = json.loads(str(file["cost"]))
        for name in SHARES:
            if name in fold:
                shares = fold[name].astype(np.float64)
                fold[name] = shares / shares.sum(axis=1, keepdims=True)
        fold |= {name: fold[name].astype(np.int64) for name in CLASSES if name in fold}
        found.setdefault(match["method"], {})[int(match["fold"])] = (fold, cost)
    return found


def identity(run: Path) -> dict[str, str]:
    """Return digests of a fold's recipe and of the images it was cut from; the student's run has no recipe."""
    recipe = run / "recipe.json"
    with (run / "split.csv").open(newline="", encoding="utf-8") as file:
        images = sorted(row["image"] for row in csv.DictReader(file))
    return {
        "recipe": hashlib.sha256(recipe.read_bytes()).hexdigest()[:16] if recipe.is_file() else "",
        "data": hashlib.sha256("\n".join(images).encode()).hexdigest()[:16],
    }


def rule_of(run: Path) -> dict[str, Any]:
    """Return how a fold's bundle names a class: `kind`, `strength`, and `prior` and `bias`, (classes,) each.

    Empty where the run has no bundle, as the student's, or one that cannot be read.
    """
    from dermlens.bundle.bundle import load_bundle
    from dermlens.errors import BundleError

    if not (run / "bundle").is_dir():
        return {}
    try:
        bundle = load_bundle(run / "bundle")
    except BundleError:
        return {}
    fitted = bundle.calibration
    return {**bundle.decision_rule.as_dict(), "prior": list(fitted.prior), "bias": list(fitted.bias)}


def refuse_mixtures(method: str, costs: Mapping[int, Mapping[str, Any]]) -> None:
    """Pool no folds of different recipes or data.

    Raises:
        SystemExit: which folds differ.
    """
    kinds: dict[tuple[str, str], list[int]] = {}
    for number, cost in costs.items():
        kinds.setdefault((cost.get("recipe", ""), cost.get("data", "")), []).append(number)
    if len(kinds) > 1:
        folds = " and ".join(", ".join(map(str, numbers)) for numbers in kinds.values())
        raise SystemExit(
            f"Folds {folds} of {method!r} were made by different recipes or from different data. Train them again, or "
            "remove the kept files of the older ones."
        )


def fuller(found: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of two tables, each method's from the one that has more of its folds; of equals the new one.

    Rows of the earlier table are marked `earlier`: they were made on another day, maybe by other code.
    """
    rows = dict(found)
    for name, row in earlier.items():
        if name not in rows or len(rows[name]["folds"]) < len(row["folds"]):
            rows[name] = {**row, "earlier": True}
    first = [name for name in ("majority", "linear probe") if name in rows]
    return {name: rows[name] for name in [*first, *(name for name in rows if name not in first)]}
