"""Fits what `dermlens.inference.decision` applies: the temperature and the decision rule.

Use images that the network has not learned from (the calibrate split): on its training images it is always
sure.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from dermlens.errors import DataError, UsageError
from dermlens.evaluation.bootstrap import lesion_index
from dermlens.evaluation.metrics import check_classes
from dermlens.evaluation.weighted import Floats, Ints
from dermlens.inference.decision import Calibration, DecisionRule, probabilities

TEMPERATURE_RANGE = (0.05, 20.0)
MIN_LESIONS = 20
_HALVINGS = 60

BALANCED_RULE = DecisionRule("prior_adjusted", 1.0)


def fit_calibration(
    logits: npt.ArrayLike,
    y_true: npt.ArrayLike,
    groups: Iterable[Hashable | None] | None = None,
    *,
    prior: Sequence[float],
    training_prior: Sequence[float],
) -> Calibration:
    """Fit the temperature that makes the probabilities at `prior` most likely (Guo et al. 2017,
    arXiv:1706.04599).

    Minimises the negative log-likelihood of `softmax(logits / T + log prior - log training_prior)` over T
    in 0.05..20. It is convex in 1 / T, so bisecting its slope finds the one minimum. Each lesion counts
    once, however many images it has, and classes are weighed so that their shares are those of `prior`. A
    class without images has no say. Where every image is already told apart, smaller is always likelier: T
    then stays 1, since nothing was learned.

    Args:
        logits: (n, classes) finite numbers, of images the network has not learned from.
        y_true: (n,) integers in 0..classes-1.
        groups: n lesion ids (None for unknown), or None: every image is its own lesion.
        prior: (classes,) shares at which the probabilities are to be meant; above 0, sum 1.
        training_prior: (classes,) shares the network saw, after sampling.

    Raises:
        DataError: (code `too_few_to_calibrate`) fewer than 20 lesions.
        BundleError: logits of another shape or not finite; priors that are none.
        UsageError: y_true or groups that do not match.
    """
    start = Calibration(1.0, _floats(prior), _floats(training_prior))
    probabilities(logits, start)  # raises for a wrong shape and for NaN
    scores = np.asarray(logits, dtype=np.float64)
    lesions = lesion_index(range(len(scores)) if groups is None else groups, len(scores))
    _check_enough(lesions)
    truth = check_classes("y_true", y_true, scores.shape[1])
    if len(truth) != len(scores):
        raise UsageError(
            f"Rows must match: got {len(scores)} rows of logits and {len(truth)} labels.",
            remedy="Pass the label of every image that the logits were made from, in the same order.",
            code="shape",
        )
    weights = _image_weights(truth, lesions, np.array(start.prior))
    return Calibration(_temperature(scores, truth, weights, start), start.prior, start.training_prior)


def _temperature(scores: Floats, truth: Ints, weights: Floats, start: Calibration) -> float:
    low, high = (1.0 / bound for bound in reversed(TEMPERATURE_RANGE))  # in 1 / T
    if _slope(high, scores, truth, weights, start) <= 0:
        return 1.0
    if _slope(low, scores, truth, weights, start) >= 0:
        return TEMPERATURE_RANGE[1]
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if _slope(middle, scores, truth, weights, start) < 0:
            low = middle
        else:
            high = middle
    return float(1.0 / math.sqrt(low * high))


def _slope(inverse: float, scores: Floats, truth: Ints, weights: Floats, start: Calibration) -> float:
    """Return the derivative of the negative log-likelihood by 1 / T; it rises with 1 / T."""
    expected = np.sum(probabilities(scores * inverse, start) * scores, axis=1)
    return float(np.sum(weights * (expected - scores[np.arange(len(truth)), truth])))


def _image_weights(truth: Ints, lesions: Ints, prior: Floats) -> Floats:
    per_lesion = 1.0 / np.bincount(lesions)[lesions]
    shares = np.bincount(truth, weights=per_lesion, minlength=len(prior)) / per_lesion.sum()
    weights: Floats = per_lesion * prior[truth] / shares[truth]
    return weights


def _check_enough(lesions: Ints) -> None:
    found = len(np.unique(lesions))
    if found < MIN_LESIONS:
        raise DataError(
            f"Too few lesions to calibrate on: got {found} in {len(lesions)} images. "
            f"At least {MIN_LESIONS} that the model has not learned from are needed.",
            remedy="Give the calibrate split a larger share, or add images.",
            code="too_few_to_calibrate",
        )


def _floats(shares: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(share) for share in shares)
