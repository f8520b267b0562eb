"""Pure functions of (y_true, probability, decision): one number each, no state, no files.

Throughout: `y_true` and `decision` are (n,) integers in 0..classes-1; `probability` is (n, classes),
float, rows sum to 1. Names follow scikit-learn: `_score` is better when higher, `_loss` and `_error` when
lower. A number that the images cannot tell (a class without images) is NaN. Wrong shapes or values raise
UsageError.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dermlens.errors import UsageError
from dermlens.evaluation import weighted
from dermlens.evaluation.weighted import Bools, Floats, Ints

ECE_BINS = 15
PROBABILITY_SUM_TOLERANCE = 1e-3
_REMEDY = "Pass one row an image, in the same order everywhere."


def accuracy_score(y_true: npt.ArrayLike, decision: npt.ArrayLike) -> float:
    """Return the share of images whose decision is right, 0..1."""
    return float(weighted.accuracy(_counts(y_true, decision))[0])


def balanced_accuracy_score(y_true: npt.ArrayLike, decision: npt.ArrayLike) -> float:
    """Return the mean sensitivity of the classes in y_true, 0..1 (the score of ISIC 2018 and 2019)."""
    return float(np.nanmean(weighted.sensitivity(_counts(y_true, decision))[0]))


def sensitivity_scores(y_true: npt.ArrayLike, decision: npt.ArrayLike, n_classes: int) -> Floats:
    """Return the share of each class's images called so, (classes,) 0..1, NaN without images."""
    scores: Floats = weighted.sensitivity(_counts(y_true, decision, n_classes))[0]
    return scores


def specificity_scores(y_true: npt.ArrayLike, decision: npt.ArrayLike, n_classes: int) -> Floats:
    """Return the share of other images not called so, (classes,) 0..1, NaN without other images."""
    scores: Floats = weighted.specificity(_counts(y_true, decision, n_classes))[0]
    return scores


def confusion_matrix(y_true: npt.ArrayLike, decision: npt.ArrayLike, n_classes: int) -> Ints:
    """Return image counts, (classes, classes) int64: rows are the true class, columns the decision."""
    truth, called = check_classes("y_true", y_true, n_classes), check_classes("decision", decision, n_classes)
    _same_length(truth, called)
    return np.bincount(truth * n_classes + called, minlength=n_classes**2).reshape(n_classes, n_classes)


def roc_auc_score(positive: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Return the area under the ROC curve, 0..1: how often a positive image scores above a negative one.

    Args:
        positive: (n,) booleans, or 0 and 1.
        score: (n,) finite numbers, high meaning positive; a tie counts half.
    """
    return float(weighted.area(_curve(positive, score))[0])


def class_auc_scores(y_true: npt.ArrayLike, probability: npt.ArrayLike) -> Floats:
    """Return each class's one-vs-rest AUC, (classes,) 0..1, NaN where a class has no images or all."""
    truth, values = check_probability(y_true, probability)
    return np.array([roc_auc_score(truth == c, values[:, c]) for c in range(values.shape[1])])


def macro_auc_score(y_true: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Return the plain mean of the one-vs-rest AUCs that can be told, 0..1; NaN when none can."""
    scores = class_auc_scores(y_true, probability)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


def sensitivity_at_specificity(positive: npt.ArrayLike, score: npt.ArrayLike, specificity: float) -> float:
    """Return the largest sensitivity that a threshold reaches at this specificity or above, 0..1.

    An image is called positive when its score is at or above the threshold. Nothing is interpolated: a
    threshold with exactly this pair exists in the data. Melanoma at 90 %: `(y == MEL, p[:, MEL], 0.9)`.

    Args:
        positive: (n,) booleans, or 0 and 1.
        score: (n,) finite numbers, high meaning positive.
        specificity: 0..1.
    """
    if not 0.0 <= specificity <= 1.0:
        raise UsageError(
            f"Specificity must lie between 0 and 1: got {specificity}.",
            remedy="Write 90 % as 0.9.",
            code="specificity",
        )
    return float(weighted.sensitivity_at(_curve(positive, score), specificity)[0])


def brier_loss(y_true: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Return the Brier score, 0..2: the mean squared error, summed over the classes (Brier 1950).

    For two classes this is twice the one-column form that scikit-learn gives by default.
    """
    return float(np.mean(squared_errors(*check_probability(y_true, probability))))


def log_loss(y_true: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Return the mean negative natural log of the true class's probability, 0..36 (clipped at 2.2e-16)."""
    return float(np.mean(log_errors(*check_probability(y_true, probability))))


def expected_calibration_error(y_true: npt.ArrayLike, probability: npt.ArrayLike, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of the largest probability, 0..1, over bins of equal mass.

    Bins hold equally many images (Nixon et al. 2019, arXiv:1904.01685) because a good model's confidences
    crowd near 1, where bins of equal width leave most of them empty. Equal confidences share a bin. With
    few images the figure is too high even for a perfect model.

    Args:
        bins: at least 1; default 15 (Guo et al. 2017).
    """
    truth, values = check_probability(y_true, probability)
    confidence, correct = top_label(truth, values)
    ones = np.ones((1, len(truth)))
    return float(weighted.calibration_error(confidence, correct, equal_mass_bins(confidence, bins), ones)[0])


def top_label(y_true: Ints, probability: Floats) -> tuple[Floats, Bools]:
    """Return the largest probability of each row (n,) and whether its class is the true one (n,)."""
    return probability.max(axis=1), probability.argmax(axis=1) == y_true


def equal_mass_bins(confidence: Floats, bins: int = ECE_BINS) -> Ints:
    """Return each image's bin, (n,) int64 in 0..bins-1, cut at quantiles; equal confidences share one."""
    if bins < 1:
        raise UsageError(f"Bins must be at least 1: got {bins}.", remedy="Use 10 to 20 bins.", code="bins")
    edges = np.quantile(confidence, np.linspace(0.0, 1.0, bins + 1)[1:-1])
    return np.searchsorted(edges, confidence, side="right").astype(np.int64)


def squared_errors(y_true: Ints, probability: Floats) -> Floats:
    """Return the squared error summed over the classes, (n,) 0..2."""
    target = y_true[:, None] == np.arange(probability.shape[1])
    errors: Floats = np.sum((probability - target) ** 2, axis=1)
    return errors


def log_errors(y_true: Ints, probability: Floats) -> Floats:
    """Return the negative natural log of the true class's probability, (n,) 0..36."""
    true_class = probability[np.arange(len(y_true)), y_true]
    return -np.log(np.clip(true_class, np.finfo(np.float64).eps, 1.0))


def check_classes(name: str, values: npt.ArrayLike, n_classes: int | None = None) -> Ints:
    """Return (n,) int64 class indices, or raise UsageError when they are none."""
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
    """Return y_true (n,) int64 and probability (n, classes) float64, or raise UsageError."""
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


def _counts(y_true: npt.ArrayLike, decision: npt.ArrayLike, n_classes: int | None = None) -> weighted.ClassCounts:
    truth, called = check_classes("y_true", y_true, n_classes), check_classes("decision", decision, n_classes)
    _same_length(truth, called)
    count = n_classes or int(max(truth.max(), called.max())) + 1
    return weighted.class_counts(truth, called, count, np.ones((1, len(truth))))


def _curve(positive: npt.ArrayLike, score: npt.ArrayLike) -> weighted.Roc:
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
    return weighted.roc(truth == 1, values, np.ones((1, len(truth))))
