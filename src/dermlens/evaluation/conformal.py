"""Fits prediction sets: class-conditional (Mondrian) split conformal prediction, rare classes covered too.

For each class the limit is the ceil((n + 1) * level)-th smallest score of its n calibration lesions, so that a new
lesion *of that class* is covered with probability `level` or more, whatever the network (Vovk 2013,
doi 10.1007/s10994-013-5355-6; Sadinle et al. 2019, arXiv:1609.00451). Each lesion counts once: its images share
one lesion's weight.

A class of fewer than ceil(level / (1 - level)) lesions (9 at 90 %) has no finite limit of its own, and one of a few
more a noisy one. So classes below `MIN_OWN` lesions are also pooled (Ding et al. 2023, arXiv:2306.09335): such a class
gets the larger of its own limit and that of the pool. Where its own would be infinite, its largest score replaces it;
the guarantee then holds for the pool of rare classes, not for that class alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.bundle.decision import PredictionSets, conformal_scores
from dermlens.evaluation.metrics import Bools, Floats, Ints
from dermlens.text import wilson_interval

LEVEL = 0.9
MIN_OWN = 30


def fit_sets(
    probability: Floats, y_true: Ints, lesions: Ints, prior: Sequence[float], *, level: float = LEVEL
) -> tuple[PredictionSets, list[dict[str, Any]]]:
    """Fit the limits on lesions that the network has not learned from.

    Args:
        probability: (n, classes), calibrated; y_true: (n,) classes; lesions: (n,) lesion numbers.
        prior: (classes,) at which the probabilities are meant.

    Returns:
        The sets, and for each class `{"lesions", "basis"}`: what its limit rests on, "own", "own_and_pool", "pool" or
        "none". A class without lesions is never left out.
    """
    scores = conformal_scores(probability, prior)[np.arange(len(y_true)), y_true]
    weights = 1.0 / np.bincount(lesions)[lesions]
    counts = np.array([len(np.unique(lesions[y_true == c])) for c in range(len(prior))])
    rare = np.flatnonzero(counts < MIN_OWN)
    pooled = _limit(scores, weights, np.isin(y_true, rare), level)
    limits, basis = [], []
    for c, count in enumerate(counts):
        of_class = y_true == c
        own = _limit(scores, weights, of_class, level)
        if c not in rare:
            limits.append(own)
            basis.append({"lesions": int(count), "basis": "own"})
        elif math.isfinite(own):
            limits.append(max(own, pooled))
            basis.append({"lesions": int(count), "basis": "own_and_pool"})
        else:
            limits.append(max(float(scores[of_class].max()), pooled) if of_class.any() else math.inf)
            basis.append({"lesions": int(count), "basis": "pool" if of_class.any() else "none"})
    return PredictionSets(level, tuple(limits), max(1, math.ceil(len(prior) / 2))), basis


def _limit(scores: Floats, weights: Floats, chosen: Bools, level: float) -> float:
    """Return the conformal quantile of the chosen images, each lesion counted once; infinite if too few."""
    if not chosen.any():
        return math.inf
    order = np.argsort(scores[chosen], kind="stable")
    share = np.cumsum(weights[chosen][order])
    needed = level * (share[-1] + 1)
    place = int(np.searchsorted(share, needed - 1e-9))
    return float(scores[chosen][order][place]) if place < len(order) else math.inf


def measure_sets(inside: Bools, y_true: Ints, lesions: Ints, codes: Sequence[str]) -> dict[str, Any]:
    """Return how often the sets hold the truth and how large they are, over all and by class; each lesion counts once.

    Args:
        inside: (n, classes) booleans from `PredictionSets.apply`; lesions: (n,) lesion numbers.
    """
    covered = inside[np.arange(len(y_true)), y_true].astype(np.float64)
    size = inside.sum(axis=1)
    weights = 1.0 / np.bincount(lesions)[lesions]

    def row(chosen: Bools) -> dict[str, Any]:
        n, n_lesions = int(chosen.sum()), len(np.unique(lesions[chosen]))
        if not n:
            return {"n": 0, "n_lesions": 0, "coverage": None, "mean_size": None}
        share = weights[chosen] / weights[chosen].sum()
        value = float(covered[chosen] @ share)
        low, high = wilson_interval(value, n_lesions)
        coverage = {"value": value, "low": low, "high": high}
        return {"n": n, "n_lesions": n_lesions, "coverage": coverage, "mean_size": float(size[chosen] @ share)}

    by_size = np.bincount(size, minlength=len(codes) + 1)
    return {
        **row(np.ones(len(y_true), bool)),
        "by_size": {str(k): int(n) for k, n in enumerate(by_size) if n},
        "per_class": {code: row(y_true == c) for c, code in enumerate(codes)},
    }
