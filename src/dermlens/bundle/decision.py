"""From logits to calibrated probabilities, and from probabilities to one diagnosis.

Two things are separate. *Probabilities* are meant at the class prior recorded in the bundle. The
*decision* follows the bundle's rule, which may weigh rare classes up and so differ from the largest
probability. Applied here, with NumPy alone; fitted in `dermlens.evaluation.calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from dermlens.errors import BundleError
from dermlens.text import Figure

RuleKind = Literal["largest_probability", "prior_adjusted"]

PRIOR_SUM_TOLERANCE = 1e-6
PROBABILITY_SUM_TOLERANCE = 1e-3
_REMEDY = "Train or download the model again; do not edit bundle.json by hand."


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An object of `bundle.json`: frozen, its types are checked when it is read, an unknown field is an error."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite number is null."""
        return msgspec.json.decode(msgspec.json.encode(self), type=dict[str, Any])


class Calibration(Facts, frozen=True):
    """What turns logits into probabilities.

    Attributes:
        temperature: divides the logits; finite and above 0; 1 leaves them as they are.
        prior: class shares at which the probabilities are meant, in the order of the classes; all above 0,
            sum 1.
        training_prior: class shares that the network saw, after sampling; same length and rules.
        bias: added to each class's score; finite, one a class. None given: all 0.

    Raises:
        BundleError: (code `bad_value`) a value breaks these rules.
    """

    temperature: float
    prior: tuple[float, ...]
    training_prior: tuple[float, ...]
    bias: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise _bad_value(f"Calibration temperature must be a finite number above 0: got {self.temperature}.")
        for name, shares in (("prior", self.prior), ("training_prior", self.training_prior)):
            above_0 = all(math.isfinite(share) and share > 0 for share in shares)
            if len(shares) < 2 or not above_0 or abs(math.fsum(shares) - 1.0) > PRIOR_SUM_TOLERANCE:
                raise _bad_value(f"Calibration {name} must be 2 or more shares above 0 with the sum 1: got {shares}.")
        if len(self.prior) != len(self.training_prior):
            raise _bad_value(
                f"Calibration prior and training_prior must have one share per class each: "
                f"got {len(self.prior)} and {len(self.training_prior)}."
            )
        if not self.bias:
            msgspec.structs.force_setattr(self, "bias", (0.0,) * len(self.prior))
        if len(self.bias) != len(self.prior) or not all(map(math.isfinite, self.bias)):
            raise _bad_value(f"Calibration bias must be {len(self.prior)} finite numbers: got {self.bias}.")


class DecisionRule(Facts, frozen=True):
    """How one class is named from the probabilities.

    Attributes:
        kind: `largest_probability`, or `prior_adjusted`: the largest probability / (exp(bias) * prior ** strength).
        strength: 0 (no adjustment) to 1 (Bayes rule for balanced accuracy); `largest_probability` ignores it.

    Raises:
        BundleError: (code `bad_value`) unknown kind or strength outside 0 to 1.
    """

    kind: RuleKind
    strength: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(RuleKind):
            raise _bad_value(f"Decision rule must be one of {', '.join(get_args(RuleKind))}: got {self.kind!r}.")
        if not 0.0 <= self.strength <= 1.0:
            raise _bad_value(f"Decision rule strength must lie between 0 and 1: got {self.strength}.")


class Basis(Facts, frozen=True):
    """What the limit of a class rests on."""

    lesions: int
    basis: Literal["own", "own_and_pool", "pool", "none"]


class PredictionSets(Facts, frozen=True):
    """Which classes remain possible: class-conditional split conformal prediction.

    A class stays in the set when `log prior - log probability <= limit` of that class. The limits are chosen so that
    the sets hold the true class of `level` of the lesions of *each* class (Vovk 2013, doi 10.1007/s10994-013-5355-6;
    Sadinle et al. 2019, arXiv:1609.00451), and infinite where too few lesions are known to leave a class out.

    Attributes:
        level: share of the lesions of each class whose true class is in the set, above 0 and below 1.
        limits: one a class; null in JSON is infinity.
        max_size: an answer with a larger set is uncertain.
        basis: for each class, what its limit rests on.
    """

    level: float
    limits: tuple[float | None, ...]
    max_size: int
    basis: dict[str, Basis] | None = None

    def __post_init__(self) -> None:
        limits = tuple(math.inf if limit is None else limit for limit in self.limits)
        msgspec.structs.force_setattr(self, "limits", limits)
        if not 0.0 < self.level < 1.0 or any(map(math.isnan, limits)) or self.max_size < 1:
            raise _bad_value(f"Prediction sets: got level {self.level}, limits {self.limits}, size {self.max_size}.")

    def apply(
        self, probabilities: npt.NDArray[np.float64], prior: Sequence[float], decision: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Return (n, classes), True where a class remains possible; the named diagnosis always does.

        A common class may be left out although it is the most probable: of its lesions, nearly all look more like it.
        """
        inside: npt.NDArray[np.bool_] = conformal_scores(probabilities, prior) <= np.array(self.limits, np.float64)
        inside[np.arange(len(decision)), decision] = True
        return inside


class OperatingPoint(Facts, frozen=True):
    """From which probability on a specialist should see a person, and what that costs.

    Attributes:
        name: such as `malignant_95`.
        aim, aimed_at: which kind of lesion it looks for, and at which sensitivity.
        codes: the classes whose probabilities are added up.
        threshold: referral is advised at or above it, 0 to 1.
        fitted_on: how many lesions of that kind and of others.
        sensitivity, specificity, referred, net_benefit: measured on other lesions.
    """

    name: str
    aim: str
    codes: tuple[str, ...]
    aimed_at: float
    threshold: float
    fitted_on: dict[str, int]
    sensitivity: Figure
    specificity: Figure
    referred: Figure
    net_benefit: Figure


def conformal_scores(probabilities: npt.NDArray[np.float64], prior: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return how strange each class would be, `log prior - log probability`, (n, classes); high is strange.

    For one class it orders the images as the probability does; divided by the prior, classes can be compared.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.asarray(prior)) - np.log(probabilities), np.float64)


def probabilities(logits: npt.ArrayLike, calibration: Calibration) -> npt.NDArray[np.float64]:
    """Turn logits into probabilities at the calibration's class prior.

    `softmax(logits / temperature + bias + log prior - log training_prior)`: temperature scaling (Guo et al. 2017,
    arXiv:1706.04599), bias-corrected (Alexandari et al. 2020, arXiv:1901.06852) where that was found to help, with
    the correction for another class prior (Saerens et al. 2002, doi 10.1162/089976602753284446).

    Args:
        logits: (n, classes), real numbers, normally float32; n may be 0.
        calibration: as fitted, for the same classes in the same order.

    Returns:
        (n, classes) float64, every value in 0..1, rows sum to 1.

    Raises:
        BundleError: another number of classes (code `shape`), or a logit that is NaN or infinite
            (`not_finite`).
    """
    scores = _matrix("Logits", logits, len(calibration.prior))
    shift = np.array(calibration.bias) + np.log(calibration.prior) - np.log(calibration.training_prior)
    return softmax(scores / calibration.temperature + shift)


def decide(probabilities: npt.ArrayLike, calibration: Calibration, rule: DecisionRule) -> npt.NDArray[np.int64]:
    """Name one class for each row: `argmax(log p - bias - strength * log prior)`.

    With strength 1 every class is weighed as if all were equally frequent, the Bayes rule for balanced
    accuracy (Menon et al. 2021, arXiv:2007.07314). Ties go to the first class.

    The biases of the calibration are taken out again: they put right probabilities at a prior where one class may
    hold most of the lesions, and this rule weighs all classes alike. Left in, they gained nothing certain for balanced
    accuracy on lesions that they were not fitted on, and cost 2 to 4 points of accuracy. So a diagnosis does not
    depend on whether biases were kept. `largest_probability` keeps them.

    Args:
        probabilities: (n, classes), rows sum to 1, as `probabilities` returns them.
        calibration: gives the prior at which they are meant.
        rule: the bundle's recorded rule.

    Returns:
        (n,) int64 indices of classes.

    Raises:
        BundleError: wrong shape (`shape`), NaN or infinite (`not_finite`), not probabilities
            (`not_probabilities`).
    """
    scores = _checked(probabilities, len(calibration.prior))
    if rule.kind == "prior_adjusted":
        with np.errstate(divide="ignore"):  # a probability of 0 is log -inf and never wins
            scores = np.log(scores) - calibration.bias - rule.strength * np.log(calibration.prior)
    return np.asarray(np.argmax(scores, axis=1), np.int64)


def softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the softmax of each row of (n, classes) float64, safe for large values."""
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True), np.float64)


def _checked(values: npt.ArrayLike, n_classes: int) -> npt.NDArray[np.float64]:
    """Return (n, n_classes) float64, or raise BundleError where the rows are not probabilities."""
    matrix = _matrix("Probabilities", values, n_classes)
    off = np.abs(matrix.sum(axis=1) - 1.0)
    if matrix.size and (matrix.min() < 0 or off.max() > PROBABILITY_SUM_TOLERANCE):
        raise BundleError(
            f"Probabilities must be 0 or more and each row must sum to 1: "
            f"got a smallest value of {matrix.min():.4g} and a row that is {off.max():.4g} off.",
            remedy="Pass the result of dermlens.bundle.decision.probabilities, not logits.",
            code="not_probabilities",
        )
    return matrix


def _matrix(name: str, values: npt.ArrayLike, n_classes: int) -> npt.NDArray[np.float64]:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != n_classes:
        raise BundleError(
            f"{name} must have the shape (n, {n_classes}), one column per class: got {matrix.shape}.",
            remedy="Check that the model's graph and its bundle.json belong together.",
            code="shape",
        )
    bad = ~np.isfinite(matrix).all(axis=1)
    if bad.any():
        raise BundleError(
            f"{name} must be finite: got NaN or infinity in {int(bad.sum())} of {len(matrix)} rows, "
            f"first in row {int(np.argmax(bad))}.",
            remedy="Check the model with dermlens doctor, or use it in float32.",
            code="not_finite",
        )
    return matrix


def _bad_value(message: str) -> BundleError:
    return BundleError(message, remedy=_REMEDY, code="bad_value")
