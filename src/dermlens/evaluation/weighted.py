"""The metrics with image i counted weights[r, i] times, for many weightings r at once.

A bootstrap is a set of weightings, and a plain metric is the weighting of ones; so each formula stands
once, here, and 1,000 resamples need no loop. `weights` is (r, n) float64, 0 or more. What a weighting
cannot tell is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class ClassCounts(NamedTuple):
    """Weights by class, each (r, classes): truly of it, called it, and both at once."""

    true: Floats
    called: Floats
    hits: Floats


class Roc(NamedTuple):
    """Cumulated weight called positive as the threshold falls, (r, k + 1), from nothing to everything."""

    true_positive: Floats
    false_positive: Floats


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def class_counts(y_true: Ints, decision: Ints, n_classes: int, weights: Floats) -> ClassCounts:
    """Count truths, calls and hits of each class; y_true and decision are (n,) class indices."""
    classes = np.arange(n_classes)
    is_true = (y_true[:, None] == classes).astype(np.float64)
    is_called = (decision[:, None] == classes).astype(np.float64)
    return ClassCounts(weights @ is_true, weights @ is_called, weights @ (is_true * is_called))


def accuracy(counts: ClassCounts) -> Floats:
    """Return the share of images called rightly, (r,)."""
    return ratio(counts.hits.sum(axis=1), counts.true.sum(axis=1))


def sensitivity(counts: ClassCounts) -> Floats:
    """Return the share of each class that is called so, (r, classes)."""
    return ratio(counts.hits, counts.true)


def specificity(counts: ClassCounts) -> Floats:
    """Return the share of the other classes that is not called so, (r, classes)."""
    others = counts.true.sum(axis=1, keepdims=True) - counts.true
    return 1.0 - ratio(counts.called - counts.hits, others)


def mean_loss(loss: Floats, weights: Floats) -> Floats:
    """Return the weighted mean of a loss (n,) per image, (r,)."""
    return ratio(weights @ loss, weights.sum(axis=1))


def calibration_error(confidence: Floats, correct: Bools, bins: Ints, weights: Floats) -> Floats:
    """Return the expected calibration error over given bins (n,), (r,)."""
    surplus = (confidence - correct)[:, None] * (bins[:, None] == np.arange(bins.max() + 1))
    return ratio(np.abs(weights @ surplus).sum(axis=1), weights.sum(axis=1))


def roc(positive: Bools, score: Floats, weights: Floats) -> Roc:
    """Trace the ROC curve of (n,) scores, high meaning positive; images with equal scores move together."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    ordered = weights[:, order]
    is_positive = positive[order]

    def cumulate(mask: Bools) -> Floats:
        curve = np.zeros((len(weights), len(ranked) + 1))
        np.cumsum(ordered * mask, axis=1, out=curve[:, 1:])
        return curve if len(last_of_tie) == len(ranked) else curve[:, np.append(0, last_of_tie + 1)]

    return Roc(cumulate(is_positive), cumulate(~is_positive))


def area(curve: Roc) -> Floats:
    """Return the area under the ROC curve (trapezoids, so that a tie counts half), (r,)."""
    tp, fp = curve
    under = np.einsum("rk,rk->r", np.diff(fp, axis=1), tp[:, 1:] + tp[:, :-1]) / 2.0
    return ratio(under, tp[:, -1] * fp[:, -1])


def sensitivity_at(curve: Roc, specificity: float) -> Floats:
    """Return the largest sensitivity that a threshold reaches at this specificity or above, (r,)."""
    tp, fp = curve
    allowed = (1.0 - specificity) * fp[:, -1:] + 1e-9
    index = (fp <= allowed).sum(axis=1) - 1
    reached = ratio(tp[np.arange(len(tp)), index], tp[:, -1])
    return np.where(fp[:, -1] > 0, reached, np.nan)


def cell_counts(cells: Ints, weights: Floats) -> tuple[Ints, Floats]:
    """Sum the weights of each distinct cell number (n,): returns the k cells, ascending, and (r, k) sums."""
    order = np.argsort(cells, kind="stable")
    distinct, starts = np.unique(cells[order], return_index=True)
    return distinct, np.add.reduceat(weights[:, order], starts, axis=1)
