"""Thresholds for referral at stated sensitivities, and what they cost.

Net benefit weighs a needless referral against a missed disease by the odds of the threshold:
true positives / n - false positives / n * t / (1 - t) (Vickers and Elkin 2006, doi 10.1177/0272989X06295361).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.bundle.trust import grave_codes
from dermlens.evaluation.bootstrap import RESAMPLES, no_figure, sampled_figure
from dermlens.evaluation.metrics import Bools, Floats, Ints, share

SENSITIVITIES = (0.95, 0.9)
REFERRAL = "malignant_95"
MIN_LESIONS = 20  # fewer, and 90 or 95 % of them is one lesion more or less


def aims(codes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what a model of these classes can look for: name -> codes."""
    grave = grave_codes(codes)
    found = {"malignant": grave} if grave and len(grave) < len(codes) else {}
    return {**found, **({"melanoma": ("MEL",)} if "MEL" in codes else {})}


def fit_points(probability: Floats, y_true: Ints, lesions: Ints, codes: Sequence[str]) -> list[dict[str, Any]]:
    """Choose the thresholds on calibration lesions: the largest that keeps the stated share of the positive lesions.

    Returns:
        For each aim and sensitivity `{"name", "codes", "aim", "threshold", "fitted_on"}`; none for an aim with fewer
        than 20 positive or 20 other lesions.
    """
    points = []
    for aim, members in aims(codes).items():
        columns = [codes.index(code) for code in members]
        positive, score = np.isin(y_true, columns), probability[:, columns].sum(axis=1)
        counts = [len(np.unique(lesions[side])) for side in (positive, ~positive)]
        if min(counts) < MIN_LESIONS:
            continue
        weights = 1.0 / np.bincount(lesions)[lesions]
        for sensitivity in SENSITIVITIES:
            threshold = _threshold(score[positive], weights[positive], sensitivity)
            points.append(
                {
                    "name": f"{aim}_{sensitivity * 100:.0f}",
                    "aim": aim,
                    "codes": list(members),
                    "aimed_at": sensitivity,
                    "threshold": threshold,
                    "fitted_on": {"positive_lesions": counts[0], "other_lesions": counts[1]},
                }
            )
    return points


def _threshold(score: Floats, weights: Floats, sensitivity: float) -> float:
    order = np.argsort(-score, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(score[order][np.searchsorted(reached, sensitivity - 1e-9)])


def measure_point(
    point: dict[str, Any], probability: Floats, y_true: Ints, lesions: Ints, codes: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Return sensitivity, specificity and net benefit of a threshold, each with a 95 % interval over lesions."""
    if not len(y_true):
        return not_measured("no lesions")
    columns = [codes.index(code) for code in point["codes"]]
    positive, referred = np.isin(y_true, columns), probability[:, columns].sum(axis=1) >= point["threshold"]
    generator = np.random.default_rng(seed)
    numbers = np.unique(lesions, return_inverse=True)[1]
    of_lesion = np.zeros(numbers.max() + 1, bool)
    of_lesion[numbers[positive]] = True
    draws = np.empty((RESAMPLES, len(of_lesion)))
    for side in (of_lesion, ~of_lesion):
        n = int(side.sum())
        if n:
            draws[:, side] = generator.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    weights = np.concatenate([np.ones((1, len(y_true))), draws[:, numbers]])
    values = _rates(weights, positive, referred, point["threshold"])
    sides = {"sensitivity": of_lesion.sum(), "specificity": (~of_lesion).sum(), "referred": len(of_lesion)}
    counts = {name: int(n) for name, n in sides.items()}
    return {
        name: sampled_figure(samples, reason="no lesions of that kind", lesions=counts.get(name))
        for name, samples in values.items()
    }


def _rates(weights: Floats, positive: Bools, referred: Bools, threshold: float) -> dict[str, Floats]:
    everyone = np.ones_like(positive)
    odds = threshold / max(1e-12, 1 - threshold)
    hits, needless = (share(side & referred, everyone, weights) for side in (positive, ~positive))
    return {
        "sensitivity": share(positive & referred, positive, weights),
        "specificity": share(~positive & ~referred, ~positive, weights),
        "referred": share(referred, everyone, weights),
        "net_benefit": hits - needless * odds,
    }


def not_measured(reason: str) -> dict[str, Any]:
    """Return what `measure_point` does, with null figures."""
    return {name: no_figure(reason) for name in ("sensitivity", "specificity", "referred", "net_benefit")}


def decision_curve(probability: Floats, y_true: Ints, members: Sequence[int]) -> dict[str, list[float]]:
    """Return net benefit by threshold: of following the model, of referring everyone, and (always 0) nobody."""
    positive, score = np.isin(y_true, members), probability[:, list(members)].sum(axis=1)
    thresholds = np.linspace(0.01, 0.6, 60)
    odds = thresholds / (1 - thresholds)
    called = score[None, :] >= thresholds[:, None]
    model = (called & positive).mean(axis=1) - (called & ~positive).mean(axis=1) * odds
    everyone = positive.mean() - (1 - positive.mean()) * odds
    return {"threshold": thresholds.tolist(), "model": model.tolist(), "everyone": everyone.tolist()}
