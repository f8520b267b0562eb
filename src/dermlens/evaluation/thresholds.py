"""What a threshold for referral gives and costs on labelled images, averaged by the case mix.

Net benefit weighs a needless referral against a missed disease by the odds of the threshold:
true positives / n - false positives / n * t / (1 - t) (Vickers and Elkin 2006, doi 10.1177/0272989X06295361). It hangs
on how common the disease is. Probabilities are those of a case mix, so the lesions are weighted to have that mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dermlens.bundle.limits import is_referred, lesions_worth, mix_weights
from dermlens.evaluation.bootstrap import no_figure, sampled_figure, weightings
from dermlens.evaluation.metrics import Bools, Floats, Ints, share


def measure_point(
    point: Mapping[str, Any],
    probability: Floats,
    y_true: Ints,
    lesions: Ints,
    codes: Sequence[str],
    shares: Sequence[float],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Return sensitivity, specificity, share referred and net benefit of a threshold, with 95 % intervals over lesions.

    Args:
        point: `codes`, whose probabilities are added up, and `threshold`: a lesion is referred at or above it, or where
            the first diagnosis is one of them.
        probability: (n, classes) at the case mix.
        lesions: (n,) lesion numbers.
        shares: (classes,) of the case mix: each class counts as much as its share, each lesion once in its class.
    """
    if not len(y_true):
        return not_measured("no lesions")
    columns = [codes.index(code) for code in point["codes"]]
    positive, referred = np.isin(y_true, columns), is_referred(probability, columns, point["threshold"])
    numbers = np.unique(lesions, return_inverse=True)[1].astype(np.int64)
    mixed = mix_weights(y_true, numbers, shares)
    values = _rates(weightings(y_true, numbers, seed=seed) * mixed, positive, referred, point["threshold"])
    sides = {"sensitivity": positive, "specificity": ~positive, "referred": np.ones_like(positive)}
    worth = {name: int(lesions_worth(mixed[side], numbers[side])) for name, side in sides.items() if side.any()}
    return {
        name: sampled_figure(samples, reason="no lesions of that kind", lesions=worth.get(name))
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


def decision_curve(
    probability: Floats, y_true: Ints, weights: Floats, members: Sequence[int]
) -> dict[str, list[float]]:
    """Return net benefit by threshold: of following the model, of referring everyone, and (always 0) nobody.

    Args:
        weights: (n,) of the images with the sum 1, at the case mix of the probabilities.
        members: the columns of the classes to be found.
    """
    positive, score = np.isin(y_true, members), probability[:, list(members)].sum(axis=1)
    thresholds = np.linspace(0.01, 0.6, 60)
    odds = thresholds / (1 - thresholds)
    called = score[None, :] >= thresholds[:, None]
    model = (called & positive) @ weights - (called & ~positive) @ weights * odds
    grave = float(weights @ positive)
    everyone = grave - (1 - grave) * odds
    return {"threshold": thresholds.tolist(), "model": model.tolist(), "everyone": everyone.tolist()}
