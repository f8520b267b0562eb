"""The folds of the accuracy protocol: trained once, kept as small files, and read again as one table.

A run folder has gigabytes of features; what the tables need of a fold is one row a lesion, some 80 KB. So each finished
fold leaves `METHOD_foldN.npz` in `results/accuracy/folds`, and every subject reads the folds from there: they can be
trained on several machines and days.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import CONSOLE, RESULTS
from benchmarks.fresh import fresh
from dermlens.evaluation.bootstrap import resample_weights, sampled_figure

KEPT = RESULTS / "accuracy" / "folds"
FOLDS = 5
RESAMPLES = 1000
PREFERENCE = ("images_224", "isic9", "images_200x150")  # the sharpest copy of a lesion first
SHARES = ("probability", "probe_probability")
CLASSES = ("truth", "decision", "probe", "majority")
NAME = re.compile(r"(?P<method>\w+)_fold(?P<fold>\d+)\.npz")

Fold = dict[str, np.ndarray]
Kept = tuple[Fold, dict[str, Any]]  # a fold and what it cost, with its recipe, its data and its case mix


# --- training --------------------------------------------------------------------------------------------------


def train_once(folder: Path, call: Callable[..., Any], *arguments: Any) -> None:
    """Train in a process of its own unless the run folder is finished; keep minutes of all tries and peak memory."""
    if is_finished(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    cost_file = folder / "cost.json"
    cost = json.loads(cost_file.read_text()) if cost_file.exists() else {"minutes": 0.0, "peak_gb": 0.0}
    CONSOLE.print(f"Training {folder}", highlight=False)
    done = fresh(call, *arguments)
    cost = {"minutes": cost["minutes"] + done.seconds / 60, "peak_gb": max(cost["peak_gb"], done.peak_mb / 1000)}
    cost_file.write_text(json.dumps(cost))


def is_finished(folder: Path) -> bool:
    """Say whether a run folder was trained and tested."""
    return (folder / "test_predictions.csv").exists()


def predictions(run: Path) -> Fold:
    """Return one row a lesion of a finished fold, sorted by lesion: that of the sharpest image.

    `truth`, `decision`, `probe`, `majority` (n,) class indices; `probability` and `probe_probability` (n, classes);
    `lesion`, `image`, `source`, `isic_id` (n,) text; `codes` (classes,).
    """
    with (run / "split.csv").open(newline="", encoding="utf-8") as file:
        facts = {row["image"]: row for row in csv.DictReader(file)}
    with (run / "test_predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    codes = sorted(name[2:] for name in rows[0] if name.startswith("p_"))

    def sharpest(row: Mapping[str, str]) -> tuple[int, str]:
        source = facts[row["image"]]["source"]
        return (PREFERENCE.index(source) if source in PREFERENCE else len(PREFERENCE), row["image"])

    best: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=sharpest):
        best.setdefault(row["lesion_id"] or row["image"], row)
    chosen = [best[lesion] for lesion in sorted(best)]

    def index(name: str) -> np.ndarray:
        return np.array([codes.index(row[name]) for row in chosen])

    def shares(kind: str) -> np.ndarray:
        found = np.array([[float(row[f"{kind}_{code}"]) for code in codes] for row in chosen])
        normalised: np.ndarray = found / found.sum(axis=1, keepdims=True)
        return normalised

    learned = Counter(row["diagnosis"] for row in facts.values() if row["role"] == "train")
    most_common = max(sorted(learned), key=learned.__getitem__)
    texts = {
        key: np.array([facts[row["image"]].get(key) or "" for row in chosen]) for key in ("image", "source", "isic_id")
    }
    return {
        "truth": index("diagnosis"),
        "decision": index("decision"),
        "probe": index("probe_decision"),
        "majority": np.full(len(chosen), codes.index(most_common)),
        "probability": shares("p"),
        "probe_probability": shares("q"),
        "lesion": np.array(sorted(best)),
        **texts,
        "codes": np.array(codes),
    }


# --- small files -----------------------------------------------------------------------------------------------


def keep_fold(run: Path, method: str, number: int, folder: Path = KEPT) -> Path:
    """Keep a finished run as a small file, with its cost, the digests of its recipe and data, and its case mix."""
    cost = json.loads((run / "cost.json").read_text()) | _identity(run) | {"shares": _shares_of(run)}
    return write_fold(folder, method, number, predictions(run), cost)


def write_fold(folder: Path, method: str, number: int, fold: Mapping[str, np.ndarray], cost: Mapping[str, Any]) -> Path:
    """Write a fold as `predictions` gives it; shares are kept as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    small: dict[str, Any] = {name: fold[name].astype(np.float16) for name in SHARES if name in fold}
    small |= {name: fold[name].astype(np.int16) for name in CLASSES if name in fold}
    rest: dict[str, Any] = {name: array for name, array in fold.items() if name not in small}
    path = folder / f"{method}_fold{number}.npz"
    half = folder / f".{path.name}"
    with half.open("wb") as file:
        np.savez_compressed(file, cost=np.array(json.dumps(dict(cost))), **small, **rest)
    os.replace(half, path)
    return path


def read_folds(folder: Path = KEPT) -> dict[str, dict[int, Kept]]:
    """Return method -> fold -> its table and its cost, of all that is kept in a folder; shares add up to 1.

    Raises:
        SystemExit: folds of a method were made by different recipes or from different data.
    """
    found: dict[str, dict[int, Kept]] = {}
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
    for method, folds in found.items():
        _refuse_mixtures(method, {number: cost for number, (_, cost) in folds.items()})
    return found


def read_method(method: str, folder: Path = KEPT) -> dict[int, Kept]:
    """Return the kept folds of one method.

    Raises:
        SystemExit: there is none.
    """
    found = read_folds(folder).get(method, {})
    if not found:
        raise SystemExit(f"No fold of {method!r} is kept in {folder}. Train one: python -m benchmarks protocol")
    return found


def _identity(run: Path) -> dict[str, str]:
    """Return digests of a fold's recipe and of the images that it was cut from."""
    with (run / "split.csv").open(newline="", encoding="utf-8") as file:
        images = sorted(row["image"] for row in csv.DictReader(file))
    return {
        "recipe": hashlib.sha256((run / "recipe.json").read_bytes()).hexdigest()[:16],
        "data": hashlib.sha256("\n".join(images).encode()).hexdigest()[:16],
    }


def _shares_of(run: Path) -> list[float]:
    """Return the case mix that a fold's probabilities are stated for, (classes,)."""
    from dermlens.bundle.bundle import load_bundle

    bundle = load_bundle(run / "bundle")
    return list(bundle.case_mix.of(bundle.codes))


def at_equal_mix(method: str, number: int, kept: Kept) -> np.ndarray:
    """Return a fold's probabilities, (n, classes), if all diagnoses were equally common.

    Folds of before the case mixes say a `rule` instead: its `prior` is the mix of their probabilities. Its biases were
    fitted at that mix and had no part in the diagnosis, so they are taken out.

    Raises:
        SystemExit: the fold does not say at which mix its probabilities are.
    """
    fold, cost = kept
    shares, rule = cost.get("shares"), cost.get("rule")
    if rule:
        shares = np.array(rule["prior"]) * np.exp(rule.get("bias", 0.0))
    if shares is None:
        raise SystemExit(f"Fold {number} of {method!r} does not say at which case mix it is: train it again.")
    found: np.ndarray = fold["probability"] / np.array(shares)
    total: np.ndarray = found.sum(axis=1, keepdims=True)
    return np.asarray(found / total)


def _refuse_mixtures(method: str, costs: Mapping[int, Mapping[str, Any]]) -> None:
    kinds: dict[tuple[str, str], list[int]] = {}
    for number, cost in costs.items():
        kinds.setdefault((cost.get("recipe", ""), cost.get("data", "")), []).append(number)
    if len(kinds) > 1:
        numbers = " and ".join(", ".join(map(str, each)) for each in kinds.values())
        raise SystemExit(
            f"Folds {numbers} of {method!r} were made by different recipes or from different data. Train them again, "
            "or remove the kept files of the older ones."
        )


# --- pooled figures --------------------------------------------------------------------------------------------


def column(folds: Mapping[int, Mapping[str, np.ndarray]], key: str) -> np.ndarray:
    """Return a column of all folds, one below the other.

    Raises:
        SystemExit: a lesion stands in two folds.
    """
    lesions = np.concatenate([table["lesion"] for table in folds.values()])
    if len(np.unique(lesions)) < len(lesions):
        raise SystemExit("A lesion stands in two folds: these are not the folds of one split.")
    return np.concatenate([table[key] for table in folds.values()])


def aligned(fold: Fold, other: Fold, key: str) -> np.ndarray:
    """Return `other[key]` in the order of the lesions of `fold`; both have the same lesions."""
    places = {lesion: place for place, lesion in enumerate(other["lesion"].tolist())}
    return other[key][[places[lesion] for lesion in fold["lesion"].tolist()]]


def draws(truth: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return weights (1 + resamples, n): each lesion once, then lesions drawn anew within their class."""
    blocks = resample_weights(truth, np.arange(len(truth)), resamples=resamples, seed=seed)
    return np.concatenate([np.ones((1, len(truth))), *blocks])


def mean_figure(values: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Return the mean of values (n,) with its interval over the resamples of `draws`."""
    total = weights.sum(axis=1)
    return sampled_figure((weights @ values) / np.where(total > 0, total, np.nan), reason="no lesions")


def source_of(method: str, folds: Sequence[int], lesions: int) -> str:
    """Return the sentence that says which lesions a table is about."""
    return f"{lesions:,} lesions, one image each, of {len(folds)} of {FOLDS} folds of `{method}`."
