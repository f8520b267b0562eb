"""What a threshold for referral gives and costs on labelled images.

Net benefit weighs a needless referral against a missed disease by the odds of the threshold:
true positives / n - false positives / n * t / (1 - t) (Vickers and Elkin 2006, doi 10.1177/0272989X06295361).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.evaluation.bootstrap import RESAMPLES, no_figure, sampled_figure
from dermlens.evaluation.metrics import Bools, Floats, Ints, share


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
