"""Classification metrics: pure functions, no state, no files; each formula is written once.

A metric comes in two forms. `balanced_accuracy_score(y_true, decision)` and the other plain forms give one number from
arrays that are checked; names follow scikit-learn (`_score` is better when higher, `_loss` and `_error` when lower).
`sensitivity(counts)` and the other weighted forms give the same metric for many weightings of the images at once:
`weights` is (r, n) float64, 0 or more, and image i counts weights[r, i] times. A bootstrap is a set of weightings, so
1,000 resamples need no loop; a plain metric is the weighting of ones.

Throughout: `y_true` and `decision` are (n,) integers in 0..classes-1; `probability` is (n, classes), float, rows sum
to 1. What the images cannot give (a class without images) is NaN. Wrong shapes or values raise UsageError.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermlens.errors import UsageError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ECE_BINS = 15
MIN_ECE_IMAGES = 100  # with fewer even perfect probabilities seem badly calibrated
PROBABILITY_SUM_TOLERANCE = 1e-3
_REMEDY = "Pass one row per image, in the same order everywhere."


class ClassCounts(NamedTuple):
    """Weights by class, each (r, classes): of images of that class, of images decided so, and of both at once."""

    true: Floats
    decided: Floats
    hits: Floats


class Roc(NamedTuple):
    """Summed weight of the positive decisions as the threshold falls, (r, k + 1), from nothing to everything."""

    true_positive: Floats
    false_positive: Floats


def accuracy_score(y_true: npt.ArrayLike, decision: npt.ArrayLike) -> float:
    """Return the share of images whose decision is correct, 0..1."""
    return float(accuracy(_counts(y_true, decision))[0])


def balanced_accuracy_score(y_true: npt.ArrayLike, decision: npt.ArrayLike) -> float:
    """Return the mean sensitivity of the classes in y_true, 0..1 (the score of ISIC 2018 and 2019)."""
    return float(np.nanmean(sensitivity(_counts(y_true, decision))[0]))


def sensitivity_scores(y_true: npt.ArrayLike, decision: npt.ArrayLike, n_classes: int) -> Floats:
    """Return the share of each class's images that get this class, (classes,) 0..1, NaN without images."""
    return sensitivity(_counts(y_true, decision, n_classes)).ravel()


def specificity_scores(y_true: npt.ArrayLike, decision: npt.ArrayLike, n_classes: int) -> Floats:
    """Return the share of the other images that do not get this class, (classes,) 0..1, NaN without other images."""
    return specificity(_counts(y_true, decision, n_classes)).ravel()


def confusion_matrix(y_true: npt.ArrayLike, decision: npt.ArrayLike, n_classes: int) -> Ints:
    """Return image counts, (classes, classes) int64: rows are the true class, columns the decision."""
    truth, decided = check_classes("y_true", y_true, n_classes), check_classes("decision", decision, n_classes)
    _same_length(truth, decided)
    return np.bincount(truth * n_classes + decided, minlength=n_classes**2).reshape(n_classes, n_classes)


def roc_auc_score(positive: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Return the area under the ROC curve, 0..1: how often a positive image scores above a negative one.

    Args:
        positive: (n,) booleans, or 0 and 1.
        score: (n,) finite numbers, high meaning positive; a tie counts half.
    """
    return float(area(_curve(positive, score))[0])


def class_auc_scores(y_true: npt.ArrayLike, probability: npt.ArrayLike) -> Floats:
    """Return each class's one-vs-rest AUC, (classes,) 0..1, NaN where a class has no images or all."""
    truth, values = check_probability(y_true, probability)
    return np.array([roc_auc_score(truth == c, values[:, c]) for c in range(values.shape[1])])


def macro_auc_score(y_true: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Return the plain mean of the one-vs-rest AUCs of the classes that have one, 0..1; NaN where none has."""
    scores = class_auc_scores(y_true, probability)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


def sensitivity_at_specificity(positive: npt.ArrayLike, score: npt.ArrayLike, specificity: float) -> float:
    """Return the largest sensitivity that a threshold reaches at this specificity or above, 0..1.

    An image is positive when its score is at or above the threshold. Nothing is interpolated: a threshold with
    exactly this pair exists in the data. Melanoma at 90 %: `(y == MEL, p[:, MEL], 0.9)`.

    Args:
        positive: (n,) booleans, or 0 and 1.
        score: (n,) finite numbers, high meaning positive.
        specificity: 0..1.
    """
    if not 0.0 <= specificity <= 1.0:
        raise UsageError(
            f"Specificity must lie between 0 and 1: got {specificity}.", remedy="Write 90 % as 0.9.", code="specificity"
        )
    return float(sensitivity_at(_curve(positive, score), specificity)[0])


def brier_loss(y_true: npt.ArrayLike, probability: npt.ArrayLike, weights: Floats | None = None) -> float:
    """Return the Brier score, 0..2: the mean squared error, summed over the classes (Brier 1950).

    For two classes this is twice the one-column form that scikit-learn gives by default.

    Args:
        weights: (n,) of the images; all alike when None.
    """
    return float(np.average(squared_errors(*check_probability(y_true, probability)), weights=weights))


def log_loss(y_true: npt.ArrayLike, probability: npt.ArrayLike, weights: Floats | None = None) -> float:
    """Return the mean negative natural log of the true class's probability, 0..36 (clipped at 2.2e-16)."""
    return float(np.average(log_errors(*check_probability(y_true, probability)), weights=weights))


def expected_calibration_error(
    y_true: npt.ArrayLike, probability: npt.ArrayLike, bins: int = ECE_BINS, weights: Floats | None = None
) -> float:
    """Return the expected calibration error of the largest probability, 0..1, over bins of equal mass.

    Bins hold equally many images (Nixon et al. 2019, arXiv:1904.01685) because a good model's confidences
    crowd near 1, where bins of equal width leave most of them empty. Equal confidences share a bin. With
    few images the figure is too high even for a perfect model.

    Args:
        bins: at least 1; default 15 (Guo et al. 2017).
        weights: (n,) of the images; all alike when None.
    """
    truth, values = check_probability(y_true, probability)
    confidence, correct = top_label(truth, values)
    weights = np.ones(len(truth)) if weights is None else weights
    return float(calibration_error(confidence, correct, equal_mass_bins(confidence, bins, weights), weights[None])[0])


def top_label(y_true: Ints, probability: Floats) -> tuple[Floats, Bools]:
    """Return the largest probability of each row (n,) and whether its class is the true one (n,)."""
    return probability.max(axis=1), probability.argmax(axis=1) == y_true


def equal_mass_bins(confidence: Floats, bins: int = ECE_BINS, weights: Floats | None = None) -> Ints:
    """Return each image's bin, (n,) int64 in 0..bins-1; equal confidences share one.

    Bins have equal weight, as far as single confidences allow: each lies where the middle of its weight lies.

    Args:
        weights: (n,) of the images, 0 or more; all alike when None.
    """
    if bins < 1:
        raise UsageError(f"Bins must be at least 1: got {bins}.", remedy="Use 10 to 20 bins.", code="bins")
    _, place = np.unique(confidence, return_inverse=True)
    weight = np.bincount(place, weights=weights).astype(np.float64)
    middle = np.cumsum(weight) - weight / 2
    bin_of = np.minimum(middle / weight.sum() * bins, bins - 1).astype(np.int64)
    return np.asarray(bin_of[place], np.int64)


def squared_errors(y_true: Ints, probability: Floats) -> Floats:
    """Return the squared error summed over the classes, (n,) 0..2."""
    target = y_true[:, None] == np.arange(probability.shape[1])
    return np.asarray(np.sum((probability - target) ** 2, axis=1), np.float64)


def log_errors(y_true: Ints, probability: Floats) -> Floats:
    """Return the negative natural log of the true class's probability, (n,) 0..36."""
    true_class = probability[np.arange(len(y_true)), y_true]
    return -np.log(np.clip(true_class, np.finfo(np.float64).eps, 1.0))


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def share(part: Bools, whole: Bools, weights: Floats) -> Floats:
    """Return the weight of the images in `part` (n,) over that of the images in `whole` (n,), (r,)."""
    return ratio(weights @ part.astype(np.float64), weights @ whole.astype(np.float64))


def class_counts(y_true: Ints, decision: Ints, n_classes: int, weights: Floats) -> ClassCounts:
    """Sum the weights of truths, decisions and hits of each class."""
    classes = np.arange(n_classes)
    is_true = (y_true[:, None] == classes).astype(np.float64)
    is_decided = (decision[:, None] == classes).astype(np.float64)
    return ClassCounts(weights @ is_true, weights @ is_decided, weights @ (is_true * is_decided))


def accuracy(counts: ClassCounts) -> Floats:
    """Return the share of images whose decision is correct, (r,)."""
    return ratio(counts.hits.sum(axis=1), counts.true.sum(axis=1))


def sensitivity(counts: ClassCounts) -> Floats:
    """Return the share of each class that gets this class, (r, classes)."""
    return ratio(counts.hits, counts.true)


def specificity(counts: ClassCounts) -> Floats:
    """Return the share of the other classes that does not get this class, (r, classes)."""
    others = counts.true.sum(axis=1, keepdims=True) - counts.true
    return 1.0 - ratio(counts.decided - counts.hits, others)


def balanced_accuracy(counts: ClassCounts, classes: Ints) -> Floats:
    """Return the mean sensitivity of some classes, (r,): NaN where one of them has no weight."""
    return np.asarray(sensitivity(counts)[:, classes].mean(axis=1), np.float64)


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


def check_classes(name: str, values: npt.ArrayLike, n_classes: int | None = None) -> Ints:
    """Return (n,) int64 class indices; raises UsageError where they are none."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool):
        raise UsageError(
            f"{name} must be (n,) integers with n at least 1: got {array.dtype} of shape {array.shape}.",
            remedy=_REMEDY,
            code="shape",
        )
    if array.min() < 0 or (n_classes is not None and array.max() >= n_classes):
        allowed = "0 or more" if n_classes is None else f"0 to {n_classes - 1}"
        raise UsageError(
            f"{name} must hold class indices, {allowed}: got {array.min()} to {array.max()}.",
            remedy="Give the classes in the model's own order.",
            code="class_index",
        )
    return array.astype(np.int64)


def check_probability(y_true: npt.ArrayLike, probability: npt.ArrayLike) -> tuple[Ints, Floats]:
    """Return y_true (n,) int64 and probability (n, classes) float64; raises UsageError where they are none."""
    values = np.asarray(probability, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise UsageError(
            f"probability must be (n, classes) with at least 2 classes: got {values.shape}.",
            remedy=_REMEDY,
            code="shape",
        )
    truth = check_classes("y_true", y_true, values.shape[1])
    _same_length(truth, values)
    sums_to_one = np.abs(values.sum(axis=1) - 1.0) <= PROBABILITY_SUM_TOLERANCE
    if not (sums_to_one.all() and values.min() >= 0):  # a NaN fails the first, too
        raise UsageError(
            f"probability must be 0 or more with rows that sum to 1: "
            f"{int((~sums_to_one).sum())} of {len(values)} rows do not, smallest value {values.min():.4g}.",
            remedy="Pass probabilities, not logits, and leave out images that could not be read.",
            code="not_probabilities",
        )
    return truth, values


def _same_length(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> None:
    if len(one) != len(other):
        raise UsageError(f"Rows must match: got {len(one)} and {len(other)}.", remedy=_REMEDY, code="shape")


def _counts(y_true: npt.ArrayLike, decision: npt.ArrayLike, n_classes: int | None = None) -> ClassCounts:
    truth, decided = check_classes("y_true", y_true, n_classes), check_classes("decision", decision, n_classes)
    _same_length(truth, decided)
    count = n_classes or int(max(truth.max(), decided.max())) + 1
    return class_counts(truth, decided, count, np.ones((1, len(truth))))


def _curve(positive: npt.ArrayLike, score: npt.ArrayLike) -> Roc:
    truth = check_classes("positive", positive, 2)
    values = np.asarray(score, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise UsageError(
            f"score must be (n,) finite numbers: got shape {values.shape}, "
            f"{int((~np.isfinite(values)).sum())} of them not finite.",
            remedy=_REMEDY,
            code="not_finite",
        )
    _same_length(truth, values)
    return roc(truth == 1, values, np.ones((1, len(truth))))
