"""What limits the accuracy: the pooled predictions of the protocol's folds, looked at; nothing is trained.

- AK and SCC as one class, as HAM10000's `akiec` has them, equally common within it. Only these seven classes can be
  set beside figures published for HAM10000.
- By source of the image and by the way the diagnosis was made, each beside what its mix of classes alone would give.
- Which confusions make up the errors, and the balanced accuracy that is lost.
- How far a fold's balanced accuracy must scatter with so few lesions of the rare classes, were the network the same.
- How often the truth is among the first two diagnoses.

One image of each lesion, each judged by the network that has not met it, with its own bundle's calibration, at
the equal case mix. 95 % intervals from a bootstrap over lesions within classes. It reads the kept folds
(`benchmarks/folds.py`).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.folds import Kept, at_equal_mix, column, draws, read_method, source_of
from benchmarks.report import markdown, png
from dermlens.bundle.limits import order_of
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import sampled_figure
from dermlens.evaluation.metrics import balanced_accuracy_score, confusion_matrix

AKIEC = ("AK", "SCC")
PAIRS = (("AK", "SCC"), ("MEL", "NV"), ("BKL", "MEL"), ("BKL", "NV"), ("BCC", "SCC"))
RAREST = (12, 16, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class Seen:
    """All lesions in one order, (n,) or (n, classes); probabilities are those at the equal mix."""

    codes: tuple[str, ...]
    truth: np.ndarray
    decision: np.ndarray
    probability: np.ndarray
    fold: np.ndarray
    source: np.ndarray
    isic_id: np.ndarray


def run(*, data: Path, method: str = "embedded") -> dict[str, Any]:
    """Return the figures of all kept folds of a method."""
    seen = read(method, read_method(method))
    ways, ham = ways_of_diagnosis(seen.isic_id, data)
    matrix = confusion_matrix(seen.truth, seen.decision, len(seen.codes))
    return {
        "method": method,
        "folds": np.unique(seen.fold).tolist(),
        "lesions": len(seen.truth),
        "errors": int((seen.decision != seen.truth).sum()),
        "asked": headline(seen, ham),
        "by_source": groups(seen, seen.source),
        "by_diagnosis": groups(seen, ways),
        "confusions": confusions(seen),
        "spread": spread(seen),
        "confusion_matrix": {"classes": list(seen.codes), "rows": "true", "value": matrix.tolist()},
    }


def read(method: str, folds: Mapping[int, Kept]) -> Seen:
    """Put the folds of a method below each other.

    Raises:
        SystemExit: a fold does not say at which case mix it is, or they differ in their classes.
    """
    tables = {n: table for n, (table, _) in folds.items()}
    shares = [at_equal_mix(method, n, kept) for n, kept in folds.items()]
    kinds = {tuple(map(str, table["codes"])) for table in tables.values()}
    if len(kinds) > 1:
        raise SystemExit(f"The folds of {method!r} differ in their classes: {kinds}.")
    return Seen(
        codes=kinds.pop(),
        truth=column(tables, "truth"),
        decision=column(tables, "decision"),
        probability=np.concatenate(shares),
        fold=np.repeat(list(tables), [len(table["truth"]) for table in tables.values()]),
        source=column(tables, "source"),
        isic_id=column(tables, "isic_id"),
    )


def merged(seen: Seen, members: Sequence[str] = AKIEC) -> Seen:
    """Return the same with these classes as one, named as they are joined by a +, at the equal mix of what is left.

    Within the new class its members are equally common: its probability is their mean, brought to the sum 1.
    """
    joined = [seen.codes.index(code) for code in members]
    kept = [c for c in range(len(seen.codes)) if c not in joined]
    new = np.array([kept.index(c) if c in kept else len(kept) for c in range(len(seen.codes))])
    mean = seen.probability[:, joined].mean(axis=1, keepdims=True)
    probability = np.concatenate([seen.probability[:, kept], mean], axis=1)
    return replace(
        seen,
        codes=(*(seen.codes[c] for c in kept), "+".join(members)),
        truth=new[seen.truth],
        decision=probability.argmax(axis=1),
        probability=probability / probability.sum(axis=1, keepdims=True),
    )


def scored(truth: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Return lesions, accuracy and balanced accuracy of (n,) rights and wrongs, 0 or 1."""
    weights, classes = draws(truth), np.unique(truth)
    of_class = (truth[:, None] == classes).astype(float)
    hits, count = weights @ (of_class * right[:, None]), weights @ of_class
    accuracy = sampled_figure(hits.sum(axis=1) / count.sum(axis=1), reason="no lesions", lesions=len(truth))
    balanced = sampled_figure((hits / count).mean(axis=1), reason="no lesions")
    return {"lesions": len(truth), "classes": len(classes), "balanced_accuracy": balanced, "accuracy": accuracy}


def first_two(seen: Seen) -> np.ndarray:
    """Return whether the truth is the first or second of the order, (n,)."""
    order = order_of(seen.probability)
    found: np.ndarray = (order[:, :2] == seen.truth[:, None]).any(axis=1)
    return found


def headline(seen: Seen, ham: np.ndarray) -> dict[str, Any]:
    """Return how accurate it is under other questions; `ham` (n,) marks the lesions of HAM10000."""
    shares, one = np.bincount(seen.truth, minlength=len(seen.codes)), merged(seen)
    at_their_mix = (seen.probability * shares).argmax(axis=1)
    asked = {
        "eight classes, as served": (seen.truth, seen.decision == seen.truth),
        "the first at the mix of these lesions": (seen.truth, at_their_mix == seen.truth),
        "truth among the first two": (seen.truth, first_two(seen)),
        "AK and SCC as one: seven classes": (one.truth, one.decision == one.truth),
        "truth among the first two of seven": (one.truth, first_two(one)),
    }
    if ham.any():
        asked["seven classes, lesions of HAM10000 only"] = (one.truth[ham], (one.decision == one.truth)[ham])
    return {name: scored(truth, right.astype(float)) for name, (truth, right) in asked.items()}


def groups(seen: Seen, names: np.ndarray) -> dict[str, Any]:
    """Return accuracy by group, and what the group's mix of classes would give at the recalls of all lesions.

    The difference of the two says how much harder or easier the group is, apart from its mix.
    """
    weights, right = draws(seen.truth), (seen.decision == seen.truth).astype(float)
    of_class = (seen.truth[:, None] == np.arange(len(seen.codes))).astype(float)
    recall = metrics.ratio(weights @ (of_class * right[:, None]), weights @ of_class)
    found = {}
    for name in sorted(set(names.tolist())):
        here = (names == name).astype(float)
        counts = weights @ (of_class * here[:, None])
        total = counts.sum(axis=1)
        accuracy = metrics.ratio(weights @ (right * here), total)
        expected = metrics.ratio(np.nansum(counts * recall, axis=1), total)
        n = int(here.sum())
        found[name] = {
            "lesions": n,
            "melanomas": int(((seen.truth == _index(seen, "MEL")) & (names == name)).sum()),
            "accuracy": sampled_figure(accuracy, reason="no lesions", lesions=n),
            "expected": sampled_figure(expected, reason="no lesions"),
            "difference": sampled_figure(accuracy - expected, reason="no lesions"),
        }
    return found


def _index(seen: Seen, code: str) -> int:
    return seen.codes.index(code) if code in seen.codes else -1


def confusions(seen: Seen) -> dict[str, Any]:
    """Return for each pair of classes its share of the errors, and of the balanced accuracy that is lost."""
    weights = draws(seen.truth)
    wrong = (seen.decision != seen.truth).astype(float)
    of_class = (seen.truth[:, None] == np.arange(len(seen.codes))).astype(float)
    lost = metrics.ratio(weights @ (of_class * wrong[:, None]), weights @ of_class)
    found = {}
    for a, b in PAIRS:
        if a not in seen.codes or b not in seen.codes:
            continue
        first, second = _index(seen, a), _index(seen, b)
        ways = [(seen.truth == x) & (seen.decision == y) for x, y in ((first, second), (second, first))]
        errors = weights @ (ways[0] | ways[1]).astype(float)
        loss = sum(
            metrics.ratio(weights @ way.astype(float), weights @ of_class[:, c])
            for c, way in zip((first, second), ways, strict=True)
        )
        found[f"{a}, {b}"] = {
            f"{a} called {b}": int(ways[0].sum()),
            f"{b} called {a}": int(ways[1].sum()),
            "share_of_errors": sampled_figure(metrics.ratio(errors, weights @ wrong), reason="no errors"),
            "share_of_lost_balanced_accuracy": sampled_figure(loss / np.nansum(lost, axis=1), reason="no errors"),
        }
    return found


def standard_error(recall: np.ndarray, lesions: np.ndarray) -> float:
    """Return that of balanced accuracy for classes of so many lesions, found independently with these probabilities."""
    return float(np.sqrt(np.sum(recall * (1 - recall) / lesions)) / len(recall))


def spread(seen: Seen) -> dict[str, Any]:
    """Return how far balanced accuracy scatters from fold to fold, and how far it must for its number of lesions."""
    matrix = confusion_matrix(seen.truth, seen.decision, len(seen.codes))
    count = matrix.sum(axis=1)
    present = count > 0
    recall, count = (np.diag(matrix) / np.maximum(count, 1))[present], count[present]
    by_fold, must = [], []
    for number in np.unique(seen.fold):
        rows = seen.fold == number
        by_fold.append(float(balanced_accuracy_score(seen.truth[rows], seen.decision[rows])))
        here = np.bincount(seen.truth[rows], minlength=len(seen.codes))[present]
        must.append(standard_error(recall[here > 0], here[here > 0]))
    variance = recall * (1 - recall) / count
    codes = np.array(seen.codes)[present]
    return {
        "by_fold": by_fold,
        "standard_deviation": float(np.std(by_fold, ddof=1)) if len(by_fold) > 1 else None,
        "standard_error_of_a_fold": float(np.mean(must)),
        "standard_error_of_all": standard_error(recall, count),
        "share_of_variance": dict(zip(codes.tolist(), (variance / variance.sum()).tolist(), strict=True)),
        "half_width_by_rarest": {str(n): 1.96 * standard_error(recall, count * n / count.min()) for n in RAREST},
    }


def ways_of_diagnosis(isic_ids: np.ndarray, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return for each lesion how it was diagnosed, or "unknown", and whether HAM10000 holds its image, (n,) each."""
    said: dict[str, str] = {}
    with (data / "isic_reference.csv").open(newline="", encoding="utf-8") as file:
        said |= {row["isic_id"]: row["dx_type"] for row in csv.DictReader(file)}
    with (data / "ham10000" / "HAM10000_metadata.csv").open(newline="", encoding="utf-8") as file:
        ham = {row["image_id"]: row["dx_type"] for row in csv.DictReader(file)}
    said |= ham
    ways = [said.get(isic_id) or "unknown" for isic_id in isic_ids.tolist()]
    return np.array(ways), np.array([isic_id in ham for isic_id in isic_ids.tolist()])


def table(found: Mapping[str, Any]) -> str:
    """Return the accuracy under other questions, by way of diagnosis, the costliest confusions, and the scatter."""
    asked = [[name, row["lesions"], row["balanced_accuracy"], row["accuracy"]] for name, row in found["asked"].items()]
    scatter, widths = found["spread"], found["spread"]["half_width_by_rarest"]
    shares = sorted(scatter["share_of_variance"].items(), key=lambda item: -item[1])
    parts = [
        source_of(found["method"], found["folds"], found["lesions"]),
        markdown(["question", "lesions", "balanced accuracy", "accuracy"], asked),
        _group_table("diagnosed by", found["by_diagnosis"]),
        _pair_table(found["confusions"]),
        f"Balanced accuracy scatters by {scatter['standard_deviation'] or 0:.3f} between folds; the number of lesions "
        f"alone makes it scatter by {scatter['standard_error_of_a_fold']:.3f}, mostly that of "
        f"{' and '.join(f'{code} ({share:.0%})' for code, share in shares[:2])}. Half the width of its interval, by "
        f"lesions in the rarest class: {', '.join(f'{n}: {width:.3f}' for n, width in widths.items())}.",
    ]
    return "\n\n".join(parts)


def _group_table(axis: str, rows: Mapping[str, Any]) -> str:
    header = [axis, "lesions", "accuracy", "minus what its mix of classes gives"]
    keys = ("lesions", "accuracy", "difference")
    return markdown(header, [[name, *(row[key] for key in keys)] for name, row in rows.items()])


def _pair_table(confusions: Mapping[str, Any]) -> str:
    rows = []
    for name, row in confusions.items():
        ways = "; ".join(f"{way} {n}" for way, n in row.items() if isinstance(n, int))
        rows.append([name, ways, row["share_of_errors"], row["share_of_lost_balanced_accuracy"]])
    return markdown(["pair", "lesions", "share of the errors", "share of the lost balanced accuracy"], rows, 2)


def figures(found: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw the confusion matrix."""
    matrix = found["confusion_matrix"]
    return {"limits.png": plot(np.array(matrix["value"]), matrix["classes"])}


def plot(matrix: np.ndarray, codes: Sequence[str]) -> bytes:
    """Draw the confusion matrix by lesions, as shares of each true class with the numbers below, as PNG bytes."""
    from matplotlib.figure import Figure

    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 1.8 + 0.68 * len(codes)
    figure = Figure(figsize=(side, 0.92 * side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (y, x), n in np.ndenumerate(matrix):
        colour = "white" if shares[y, x] > 0.55 else "black"
        axis.text(x, y, f"{shares[y, x]:.2f}\n{n}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(codes)), codes)
    axis.set_yticks(range(len(codes)), [f"{code} ({n})" for code, n in zip(codes, matrix.sum(axis=1), strict=True)])
    axis.set(xlabel="diagnosis given", ylabel="true diagnosis (lesions)")
    return png(figure, bbox_inches="tight")  # or the label at the left is cut
