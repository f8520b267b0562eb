"""A bootstrap over lesions: how far a figure would move with other lesions of the same classes.

Lesions, not images, are drawn with replacement, since views of one lesion are not independent (cluster
bootstrap: Field and Welsh 2007, doi 10.1111/j.1467-9868.2007.00593.x). They are drawn within each class,
as many as the class has (stratified: Davison and Hinkley 1997, section 3.2), since test splits are
stratified by class too. So no class vanishes from a resample; the class shares stay fixed, and an interval
says nothing about another mix of classes. Intervals are 95 % percentile intervals (Efron and Tibshirani
1993, chapter 13); below some 20 lesions they are too narrow.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dermlens.errors import UsageError
from dermlens.evaluation import metrics
from dermlens.evaluation.metrics import Floats, Ints, check_classes
from dermlens.text import wilson_interval

LEVEL = 0.95
RESAMPLES = 1000
NO_SPREAD = 1e-9
MAX_BLOCK_VALUES = 4_000_000  # weights held at once: 32 MB

Metric = Literal["balanced_accuracy", "accuracy"]


def lesion_index(groups: Iterable[Hashable | None], n: int) -> Ints:
    """Number the lesions: (n,) int64 from lesion ids of any kind.

    An image without an id (None, "" or NaN) counts as a lesion of its own. Raises UsageError (code `shape`)
    unless there is one id per image.
    """
    numbers: dict[Hashable, int] = {}
    index = [
        # NaN is the one value that is not equal to itself
        numbers.setdefault(("unnamed", i) if group in (None, "") or group != group else ("named", group), len(numbers))
        for i, group in enumerate(groups)
    ]
    if len(index) != n:
        raise UsageError(
            f"There must be one lesion id per image: got {len(index)} for {n} images.",
            remedy="Give None for an image whose lesion is not known.",
            code="shape",
        )
    return np.array(index, dtype=np.int64)


def lesion_classes(y_true: Ints, lesions: Ints) -> Ints:
    """Return the class most of each lesion's images carry, (lesions,) int64; the first class wins a tie."""
    tally = np.zeros((int(lesions.max()) + 1, int(y_true.max()) + 1), dtype=np.int64)
    np.add.at(tally, (lesions, y_true), 1)
    return np.asarray(tally.argmax(axis=1), np.int64)


def resample_weights(y_true: Ints, lesions: Ints, *, resamples: int, seed: int) -> Iterator[Floats]:
    """Draw lesions with replacement within their class; yield how often each image counts.

    Args:
        y_true: (n,) int64 classes; lesions: (n,) int64 from `lesion_index`.
        resamples: at least 1; seed: 0 or more. The same arguments always draw the same resamples.

    Yields:
        Blocks of (r, n) float64 weights, `resamples` rows in all, bounded in memory.
    """
    if resamples < 1:
        raise UsageError(f"Resamples must be at least 1: got {resamples}.", remedy="Use 1000.", code="resamples")
    generator = np.random.default_rng(seed)
    classes = lesion_classes(y_true, lesions)
    strata = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    block = max(1, MAX_BLOCK_VALUES // len(y_true))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = np.empty((rows, len(classes)))
        for members in strata:
            drawn[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), rows)
        yield drawn[:, lesions]


def weightings(y_true: Ints, lesions: Ints, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Return the weights of the images as they are, then those of each resample, (1 + resamples, n)."""
    blocks = resample_weights(y_true, lesions, resamples=resamples, seed=seed)
    return np.concatenate([np.ones((1, len(y_true))), *blocks])


def percentile_interval(samples: Floats) -> tuple[Floats, Floats, Ints]:
    """Return low, high and the number of finite samples, each (k,), from (resamples, k) samples.

    NaN samples are left out; a column of nothing but NaN gives NaN, NaN, 0.
    """
    tails = ((1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0)
    finite = np.isfinite(samples)
    limits = np.full((2, samples.shape[1]), np.nan)
    whole = finite.all(axis=0)
    if whole.any():
        limits[:, whole] = np.quantile(samples[:, whole], tails, axis=0)
    for column in np.flatnonzero(finite.any(axis=0) & ~whole):
        limits[:, column] = np.quantile(samples[finite[:, column], column], tails)
    return limits[0], limits[1], finite.sum(axis=0)


def sampled_figure(samples: Floats, *, reason: str, lesions: int | None = None) -> dict[str, Any]:
    """Return `{"value", "low", "high"}` of a quantity; limits are null where its spread is not known.

    Resamples that all agree do not make it certain: a share of `lesions` then gets Wilson's interval, all else none.

    Args:
        samples: (1 + resamples,), the value itself first.
        reason: why the value is null, where it is.
        lesions: marks the quantity as a share, 0 to 1, of so many lesions.
    """
    value = float(samples[0])
    if not np.isfinite(value):
        return no_figure(reason)
    low, high = (float(limit[0]) for limit in percentile_interval(samples[1:, None])[:2])
    if high - low > NO_SPREAD:
        return {"value": value, "low": low, "high": high}
    limits = wilson_interval(min(1.0, max(0.0, value)), lesions) if lesions else (None, None)
    return {"value": value, "low": limits[0], "high": limits[1]}


def debiased_error(samples: Floats, *, reason: str) -> dict[str, Any]:
    """Return `{"value", "low", "high"}` of an error of calibration without its upward bias, each 0 or more.

    In every bin the share of right answers varies by chance, and its distance from the mean probability counts,
    whichever way it goes: even exact probabilities show an error. Resampling adds the same noise once more, so what it
    adds on average is taken away: 2 * value - mean of the resamples (Efron and Tibshirani 1993, chapter 10; as the
    code of Kumar et al. 2019, arXiv:1909.10155, does with normal draws). Limits are those of the basic bootstrap
    (Davison and Hinkley 1997, section 5.2.1); percentiles of the resamples would lie above the truth. Exact
    probabilities still show about two thirds of their error by chance.

    Args:
        samples: (1 + resamples,), the error itself first.
        reason: why the value is null, where it is.
    """
    value, resampled = float(samples[0]), samples[1:][np.isfinite(samples[1:])]
    if not np.isfinite(value) or not len(resampled):
        return no_figure(reason)
    high, low = (float(limit) for limit in 2 * value - np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)))
    return {
        name: max(0.0, each)
        for name, each in zip(("value", "low", "high"), (2 * value - float(resampled.mean()), low, high), strict=True)
    }


def no_figure(reason: str) -> dict[str, Any]:
    """Return a figure that the images cannot give, with the reason."""
    return {"value": None, "low": None, "high": None, "reason": reason}


def paired_difference(
    y_true: npt.ArrayLike,
    decisions_a: npt.ArrayLike,
    decisions_b: npt.ArrayLike,
    groups: Iterable[Hashable | None],
    metric: Metric = "balanced_accuracy",
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, float]:
    """Compare two models on the same images: metric(a) - metric(b) with a 95 % interval.

    Both are scored on the same resamples, so lesions that are hard or easy for both cancel out. An interval without 0
    means that the difference is unlikely to come from the choice of lesions.

    Args:
        y_true, decisions_a, decisions_b: (n,) integer class indices.
        groups: n lesion ids; None for an image whose lesion is not known.
        metric: `balanced_accuracy` or `accuracy`.

    Returns:
        `{"value", "low", "high"}`, each -1..1; above 0 when a is better.

    Raises:
        UsageError: rows do not match, or an unknown metric.
    """
    truth = check_classes("y_true", y_true)
    decisions = [check_classes("decisions_a", decisions_a), check_classes("decisions_b", decisions_b)]
    for rows in decisions:
        if len(rows) != len(truth):
            raise UsageError(
                f"Rows must match: got {len(truth)} labels and {len(rows)} decisions.",
                remedy="Pass both models' decisions for the same images in the same order.",
                code="shape",
            )
    if metric not in ("balanced_accuracy", "accuracy"):
        raise UsageError(
            f"Unknown metric {metric!r}. Allowed: balanced_accuracy, accuracy.",
            remedy="Choose one of them.",
            code="metric",
        )
    weights = weightings(truth, lesion_index(groups, len(truth)), resamples=resamples, seed=seed)
    samples = _difference(truth, decisions, metric, weights)
    low, high, _ = percentile_interval(samples[1:, None])
    return {"value": float(samples[0]), "low": float(low[0]), "high": float(high[0])}


def _difference(truth: Ints, decisions: list[Ints], metric: Metric, weights: Floats) -> Floats:
    n_classes = int(max(truth.max(), *(rows.max() for rows in decisions))) + 1
    a, b = (metrics.class_counts(truth, rows, n_classes, weights) for rows in decisions)
    if metric == "accuracy":
        return metrics.accuracy(a) - metrics.accuracy(b)
    occurring = np.unique(truth)
    return metrics.balanced_accuracy(a, occurring) - metrics.balanced_accuracy(b, occurring)
