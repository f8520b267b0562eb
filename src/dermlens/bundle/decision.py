"""From logits to calibrated probabilities, and from probabilities to one diagnosis.

Two things are kept apart. *Probabilities* are meant at the class prior recorded in the bundle. The
*decision* follows the bundle's rule, which may weigh rare classes up and so differ from the largest
probability. Applied here, with NumPy alone; fitted in `dermlens.evaluation.calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from dermlens.errors import BundleError

RuleKind = Literal["largest_probability", "prior_adjusted"]

PRIOR_SUM_TOLERANCE = 1e-6
PROBABILITY_SUM_TOLERANCE = 1e-3
_REMEDY = "Train or download the model again; do not edit bundle.json by hand."


@dataclass(frozen=True)
class Calibration:
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
        _check_prior("prior", self.prior)
        _check_prior("training_prior", self.training_prior)
        if len(self.prior) != len(self.training_prior):
            raise _bad_value(
                f"Calibration prior and training_prior must have one share a class each: "
                f"got {len(self.prior)} and {len(self.training_prior)}."
            )
        if not self.bias:
            object.__setattr__(self, "bias", (0.0,) * len(self.prior))
        if len(self.bias) != len(self.prior) or not all(map(math.isfinite, self.bias)):
            raise _bad_value(f"Calibration bias must be {len(self.prior)} finite numbers: got {self.bias}.")

    def as_dict(self) -> dict[str, Any]:
        """Return the form stored in `bundle.json`."""
        return {
            "temperature": self.temperature,
            "prior": list(self.prior),
            "training_prior": list(self.training_prior),
            "bias": list(self.bias),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what `as_dict` wrote; raises BundleError when a key is missing or a value makes no sense."""
        temperature, prior, training_prior, bias = _take(values, "temperature", "prior", "training_prior", "bias")
        return cls(
            _number("temperature", temperature),
            _shares("prior", prior),
            _shares("training_prior", training_prior),
            _shares("bias", bias),
        )


@dataclass(frozen=True)
class DecisionRule:
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

    def as_dict(self) -> dict[str, Any]:
        """Return the form stored in `bundle.json`."""
        return {"kind": self.kind, "strength": self.strength}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecisionRule:
        """Read what `as_dict` wrote; raises BundleError when a key is missing or a value makes no sense."""
        kind, strength = _take(values, "kind", "strength")
        return cls(cast(RuleKind, kind), _number("strength", strength))


@dataclass(frozen=True)
class PredictionSets:
    """Which classes remain possible: class-conditional split conformal prediction.

    A class stays in the set when `log prior - log probability <= limit` of that class. The limits are chosen so that
    the sets hold the true class of `level` of the lesions of *each* class (Vovk 2013, doi 10.1007/s10994-013-5355-6;
    Sadinle et al. 2019, arXiv:1609.00451), and infinite where too few lesions are known to leave a class out.

    Attributes:
        level: share of the lesions of each class whose true class is in the set, above 0 and below 1.
        limits: one a class.
        max_size: an answer with a larger set is uncertain.
    """

    level: float
    limits: tuple[float, ...]
    max_size: int

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0 or any(math.isnan(limit) for limit in self.limits) or self.max_size < 1:
            raise _bad_value(f"Prediction sets: got level {self.level}, limits {self.limits}, size {self.max_size}.")

    def apply(
        self, probabilities: npt.NDArray[np.float64], prior: Sequence[float], decision: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Return (n, classes), True where a class remains possible; the named diagnosis always does.

        A common class may be left out although it is the most probable: of its lesions, nearly all look more like it.
        """
        inside: npt.NDArray[np.bool_] = conformal_scores(probabilities, prior) <= np.array(self.limits)
        inside[np.arange(len(decision)), decision] = True
        return inside

    def as_dict(self) -> dict[str, Any]:
        """Return the form stored in `bundle.json`; an infinite limit is null."""
        limits = [limit if math.isfinite(limit) else None for limit in self.limits]
        return {"level": self.level, "limits": limits, "max_size": self.max_size}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PredictionSets:
        """Read what `as_dict` wrote; raises BundleError when a key is missing or a value makes no sense."""
        level, limits, max_size = _take(values, "level", "limits", "max_size")
        numbers = _shares("limits", [math.inf if limit is None else limit for limit in limits])
        return cls(_number("level", level), numbers, int(_number("max_size", max_size)))


@dataclass(frozen=True)
class OperatingPoint:
    """From which probability on a person is to be seen by a specialist, and what that costs.

    Attributes:
        name: such as `malignant_95`.
        codes: the classes whose probabilities are added up.
        threshold: referral is advised at or above it, 0 to 1.
        sensitivity, specificity: what it reached on the lesions that it was measured on, 0 to 1, None where unknown.
    """

    name: str
    codes: tuple[str, ...]
    threshold: float
    sensitivity: float | None
    specificity: float | None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OperatingPoint:
        """Read a point of `bundle.json`; raises BundleError when a key is missing or a value makes no sense."""
        name, codes, threshold, *reached = _take(values, "name", "codes", "threshold", "sensitivity", "specificity")
        shares = [None if row["value"] is None else _number("operating point", row["value"]) for row in reached]
        return cls(str(name), tuple(str(c) for c in codes), _number("threshold", threshold), *shares)


def conformal_scores(probabilities: npt.NDArray[np.float64], prior: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return how strange each class would be, `log prior - log probability`, (n, classes); high is strange.

    For one class it orders the images as the probability does; divided by the prior, classes can be compared.
    """
    with np.errstate(divide="ignore"):
        scores: npt.NDArray[np.float64] = np.log(np.asarray(prior)) - np.log(probabilities)
    return scores


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
    accuracy (Menon et al. 2021, arXiv:2007.07314). Ties go to the class that stands first.

    The biases of the calibration are taken out again: they put right probabilities at a prior where one class may
    hold most of the lesions, and this rule weighs all classes alike. Left in, they gained nothing certain for balanced
    accuracy on lesions that did not fit them, and cost 2 to 4 points of accuracy (docs/lab/trust.md). So a diagnosis
    does not hang on whether biases were kept. `largest_probability` keeps them.

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
    values = check_probabilities(probabilities, len(calibration.prior))
    if rule.kind == "largest_probability":
        return _argmax(values)
    with np.errstate(divide="ignore"):  # a probability of 0 is log -inf and never wins
        adjusted = np.log(values) - calibration.bias - rule.strength * np.log(calibration.prior)
    return _argmax(adjusted)


def softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the softmax of each row of (n, classes) float64, safe for large values."""
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: npt.NDArray[np.float64] = exponents / exponents.sum(axis=1, keepdims=True)
    return shares


def check_probabilities(values: npt.ArrayLike, n_classes: int) -> npt.NDArray[np.float64]:
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


def _argmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    winners: npt.NDArray[np.int64] = np.argmax(values, axis=1).astype(np.int64)
    return winners


def _matrix(name: str, values: npt.ArrayLike, n_classes: int) -> npt.NDArray[np.float64]:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != n_classes:
        raise BundleError(
            f"{name} must have the shape (n, {n_classes}), one column a class: got {matrix.shape}.",
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


def _check_prior(name: str, prior: tuple[float, ...]) -> None:
    if len(prior) < 2:
        raise _bad_value(f"Calibration {name} needs at least 2 classes: got {len(prior)}.")
    if not all(math.isfinite(share) and share > 0 for share in prior):
        raise _bad_value(f"Calibration {name} must be finite and above 0 for every class: got {min(prior)}.")
    if abs(math.fsum(prior) - 1.0) > PRIOR_SUM_TOLERANCE:
        raise _bad_value(f"Calibration {name} must sum to 1: got {math.fsum(prior):.6f}.")


def _take(values: Mapping[str, Any], *keys: str) -> list[Any]:
    missing = [key for key in keys if key not in values]
    if missing:
        raise BundleError(
            f"bundle.json lacks {', '.join(missing)}: {', '.join(keys)} are needed.",
            remedy=_REMEDY,
            code="missing_key",
        )
    return [values[key] for key in keys]


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad_value(f"bundle.json {name} must be a number: got {value!r}.")
    return float(value)


def _shares(name: str, values: object) -> tuple[float, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise _bad_value(f"bundle.json {name} must be a list of numbers: got {values!r}.")
    return tuple(_number(name, value) for value in values)


def _bad_value(message: str) -> BundleError:
    return BundleError(message, remedy=_REMEDY, code="bad_value")
