"""Fits what `dermlens.bundle.probabilities` applies: temperature, and a bias for each class where it helps.

Use images that the network has not learned from (the calibrate split): on its training images it is always confident.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dermlens.bundle.limits import lesions_worth, mix_weights
from dermlens.bundle.probabilities import Calibration, probabilities, softmax
from dermlens.errors import DataError, UsageError
from dermlens.evaluation.bootstrap import lesion_classes, lesion_index
from dermlens.evaluation.metrics import Floats, Ints, check_classes, log_errors

TEMPERATURE_RANGE = (0.05, 20.0)
MIN_LESIONS = 20
BIAS_VARIANCE = 0.5
PARTS, REPEATS = 5, 4
SEPARATED = "the model is correct on every image of the calibrate role, so no temperature can be fitted"
_HALVINGS = 60
_STEPS = 100
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class BiasTest:
    """Whether a bias for each class helps on lesions that did not fit it, and by how much.

    Attributes:
        kept: the gain is above its standard error (the one-standard-error rule, Breiman et al. 1984).
        reason: why there was nothing to compare; None where there was.
        log_loss_temperature, log_loss_bias: cross-validated, in nats, at the case mix; each lesion counts once.
        gain, standard_error: of the first minus the second, paired by lesion.
        parts, repeats, seed: how the lesions of each class were split.
    """

    kept: bool
    reason: str | None = None
    log_loss_temperature: float | None = None
    log_loss_bias: float | None = None
    gain: float | None = None
    standard_error: float | None = None
    parts: int = PARTS
    repeats: int = REPEATS
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the form stored in `bundle.json` under `calibration_fit`."""
        return asdict(self)


@dataclass(frozen=True)
class _Sample:
    """Logits (n, classes), classes and lesion numbers (n,), and the shift `log shares - log training_prior`."""

    scores: Floats
    truth: Ints
    lesions: Ints
    start: Calibration
    shares: tuple[float, ...]

    @property
    def shift(self) -> Floats:
        return np.asarray(np.log(self.shares) - np.log(self.start.training_prior), np.float64)

    def pick(self, rows: npt.NDArray[np.intp]) -> _Sample:
        lesions = np.unique(self.lesions[rows], return_inverse=True)[1].astype(np.int64)
        return _Sample(self.scores[rows], self.truth[rows], lesions, self.start, self.shares)


def fit_calibration(
    logits: npt.ArrayLike,
    y_true: npt.ArrayLike,
    groups: Iterable[Hashable | None] | None = None,
    *,
    shares: Sequence[float],
    training_prior: Sequence[float],
    bias: bool = False,
) -> Calibration:
    """Fit the temperature that makes the probabilities at a case mix most likely (Guo et al. 2017,
    arXiv:1706.04599), and with `bias` a bias for each class besides (Alexandari et al. 2020, arXiv:1901.06852).

    Minimises the negative log-likelihood of `softmax(logits / T + bias + log shares - log training_prior)` over T in
    0.05..20. It is convex in 1 / T and the biases, so there is one minimum. Each lesion counts once in its class,
    however many images it has, and classes are weighted to have the shares of the mix. Where a class has no images, no
    bias is fitted. Where every image is classified correctly, a smaller T is always likelier: T then stays 1 and all
    biases 0.

    A rare class has ten lesions here, so its bias alone would follow chance: each bias has a normal prior around 0
    with variance 1/2, which changes a class's odds by a factor between 1/4 and 4 in 95 % (Greenland 2006,
    doi 10.1093/ije/dyi312, uses the same for an odds ratio of which little is known). This is the penalty
    `sum of bias**2` beside the log-likelihood of the effective number of lesions (Kish 1965: (sum w)**2 / sum w**2).
    It is fixed beforehand and not tuned.

    Args:
        logits: (n, classes) finite numbers, of images the network has not learned from.
        y_true: (n,) integers in 0..classes-1.
        groups: n lesion ids (None for unknown), or None: every image is its own lesion.
        shares: (classes,) case mix that the probabilities refer to; above 0, sum 1.
        training_prior: (classes,) shares the network saw, after sampling.
        bias: also fit the biases, whether they help or not; `choose_calibration` tests that.

    Raises:
        DataError: (code `too_few_to_calibrate`) fewer than 20 lesions.
        BundleError: logits of another shape or not finite; shares that are none.
        UsageError: y_true or groups that do not match.
    """
    return _fit(_sample(logits, y_true, groups, shares, training_prior), bias)


def choose_calibration(
    logits: npt.ArrayLike,
    y_true: npt.ArrayLike,
    groups: Iterable[Hashable | None] | None = None,
    *,
    shares: Sequence[float],
    training_prior: Sequence[float],
    seed: int,
) -> tuple[Calibration, BiasTest]:
    """Fit the temperature, and the biases where they help on other lesions; see `fit_calibration`.

    The lesions of each class are split into five parts; both are fitted on four and measured on the fifth, in four
    repeats. The biases are kept when the log loss at the case mix falls by more than its standard error over lesions.
    Every class needs five lesions for this, one in each part.

    Args:
        seed: splits the lesions. The other arguments and the errors are those of `fit_calibration`.
    """
    sample = _sample(logits, y_true, groups, shares, training_prior)
    found = _compare(sample, seed)
    return _fit(sample, found.kept), found


def _sample(
    logits: npt.ArrayLike,
    y_true: npt.ArrayLike,
    groups: Iterable[Hashable | None] | None,
    shares: Sequence[float],
    training_prior: Sequence[float],
) -> _Sample:
    start, shares = Calibration(1.0, _floats(training_prior)), _floats(shares)
    probabilities(logits, start, shares)  # raises for a wrong shape and for NaN
    scores = np.asarray(logits, dtype=np.float64)
    lesions = lesion_index(range(len(scores)) if groups is None else groups, len(scores))
    if (found := len(np.unique(lesions))) < MIN_LESIONS:
        raise DataError(
            f"Too few lesions to calibrate on: got {found} in {len(lesions)} images. "
            f"At least {MIN_LESIONS} that the model has not learned from are needed.",
            remedy="Give the calibrate split a larger share, or add images.",
            code="too_few_to_calibrate",
        )
    truth = check_classes("y_true", y_true, scores.shape[1])
    if len(truth) != len(scores):
        raise UsageError(
            f"Rows must match: got {len(scores)} rows of logits and {len(truth)} labels.",
            remedy="Pass one label per row of logits, in the same order.",
            code="shape",
        )
    return _Sample(scores, truth, lesions, start, shares)


def _compare(sample: _Sample, seed: int) -> BiasTest:
    """Cross-validate the temperature alone against the temperature with biases."""
    classes = lesion_classes(sample.truth, sample.lesions)
    fewest = int(np.bincount(classes, minlength=len(sample.shares)).min())
    if fewest < PARTS:
        reason = f"a class has {fewest} lesions to fit a bias on, each needs {PARTS}"
        return BiasTest(False, reason, seed=seed)
    if _fit(sample, bias=False).temperature == 1.0:
        return BiasTest(False, SEPARATED, seed=seed)
    losses = np.zeros((2, len(sample.truth)))
    for repeat in range(REPEATS):
        part = _parts(classes, np.random.default_rng([seed, repeat]))[sample.lesions]
        for number in range(PARTS):
            known, new = sample.pick(np.flatnonzero(part != number)), np.flatnonzero(part == number)
            for row, bias in enumerate((False, True)):
                shares = probabilities(sample.scores[new], _fit(known, bias), sample.shares)
                losses[row, new] += log_errors(sample.truth[new], shares) / REPEATS
    weights = _image_weights(sample)
    before, after = (losses @ weights) / weights.sum()
    gain, error = before - after, _standard_error(losses[0] - losses[1], weights, sample.lesions)
    return BiasTest(bool(gain > error), None, float(before), float(after), float(gain), error, seed=seed)


def _parts(classes: Ints, generator: np.random.Generator) -> Ints:
    """Deal the lesions of each class out to the parts, one after the other, (lesions,) int64."""
    part = np.zeros(len(classes), dtype=np.int64)
    dealt = 0
    for code in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == code))
        part[members] = (dealt + np.arange(len(members))) % PARTS
        dealt += len(members)
    return part


def _standard_error(values: Floats, weights: Floats, lesions: Ints) -> float:
    """Return the standard error of the weighted mean of values, lesion by lesion."""
    total = np.bincount(lesions, weights=weights)
    mean = np.bincount(lesions, weights=weights * values) / total
    return float(np.sqrt(np.sum((total * (mean - total @ mean / total.sum())) ** 2)) / total.sum())


def _fit(sample: _Sample, bias: bool) -> Calibration:
    start, weights = sample.start, _image_weights(sample)
    temperature = _temperature(sample, weights)
    missing = np.bincount(sample.truth, minlength=len(sample.shares)).min() == 0
    if not bias or temperature == 1.0 or missing:
        return Calibration(temperature, start.training_prior)
    return _with_bias(sample, weights, temperature)


def _temperature(sample: _Sample, weights: Floats) -> float:
    scores = sample.scores
    observed = scores[np.arange(len(scores)), sample.truth]

    def slope(inverse: float) -> float:
        """Return the derivative of the negative log-likelihood by 1 / T; it rises with 1 / T."""
        expected = np.sum(probabilities(scores * inverse, sample.start, sample.shares) * scores, axis=1)
        return float(np.sum(weights * (expected - observed)))

    low, high = (1.0 / bound for bound in reversed(TEMPERATURE_RANGE))  # in 1 / T
    if slope(high) <= 0:
        return 1.0
    if slope(low) >= 0:
        return TEMPERATURE_RANGE[1]
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1.0 / math.sqrt(low * high))


def _with_bias(sample: _Sample, weights: Floats, temperature: float) -> Calibration:
    """Fit 1 / T and the biases by Newton's method, starting at the temperature alone."""
    weights = weights * lesions_worth(weights, sample.lesions) / weights.sum()
    found = np.concatenate([[1.0 / temperature], np.zeros(sample.scores.shape[1])])
    found = _newton(found, np.ones(len(found), dtype=bool), sample, weights)
    low, high = (1.0 / bound for bound in reversed(TEMPERATURE_RANGE))
    if not low <= found[0] <= high:  # the minimum over a convex set then lies on its border
        found[0] = min(max(found[0], low), high)
        found = _newton(found, np.arange(len(found)) > 0, sample, weights)
    return Calibration(float(1.0 / found[0]), sample.start.training_prior, _floats(found[1:]))


def _newton(found: Floats, free: npt.NDArray[np.bool_], sample: _Sample, weights: Floats) -> Floats:
    """Return the minimum over the free ones of (1 / T, biases); Newton steps are halved until they descend."""
    value, slope, curve = _objective(found, sample, weights)
    for _ in range(_STEPS):
        if np.abs(slope[free]).max() < _TOLERANCE * weights.sum():
            break
        step = np.zeros_like(found)
        step[free] = np.linalg.solve(curve[np.ix_(free, free)], slope[free])
        length, promised = 1.0, float(slope @ step)
        after = _objective(found - step, sample, weights)
        while after[0] > value - 1e-4 * length * promised and length > _TOLERANCE:  # Armijo 1966
            length /= 2
            after = _objective(found - length * step, sample, weights)
        if length <= _TOLERANCE:
            break
        found, (value, slope, curve) = found - length * step, after
    return found


def _objective(found: Floats, sample: _Sample, weights: Floats) -> tuple[float, Floats, Floats]:
    """Return the penalised negative log-likelihood of (1 / T, biases), its gradient and its Hessian."""
    scores, truth, rows = sample.scores, sample.truth, np.arange(len(sample.truth))
    shares = softmax(scores * found[0] + found[1:] + sample.shift)
    weighted, expected = weights[:, None] * shares, np.sum(shares * scores, axis=1)
    away = weighted * (scores - expected[:, None])
    observed = np.bincount(truth, weights=weights, minlength=scores.shape[1])
    slope = np.empty(len(found))
    slope[0] = np.sum(weights * (expected - scores[rows, truth]))
    slope[1:] = weighted.sum(axis=0) - observed + found[1:] / BIAS_VARIANCE
    curve = np.empty((len(found), len(found)))
    curve[0, 0] = np.sum(away * scores) + _TOLERANCE
    curve[0, 1:] = curve[1:, 0] = away.sum(axis=0)
    curve[1:, 1:] = np.diag(weighted.sum(axis=0) + 1 / BIAS_VARIANCE) - shares.T @ weighted
    value = weights @ log_errors(truth, shares) + np.sum(found[1:] ** 2) / (2 * BIAS_VARIANCE)
    return float(value), slope, curve


def _image_weights(sample: _Sample) -> Floats:
    return mix_weights(sample.truth, sample.lesions, sample.shares) * len(np.unique(sample.lesions))


def _floats(shares: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(share) for share in shares)
