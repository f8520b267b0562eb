"""From logits to calibrated probabilities at a case mix; the diagnosis is the most probable class.

Applied here, with NumPy alone; fitted in `dermlens.evaluation.calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dermlens.errors import BundleError

PRIOR_SUM_TOLERANCE = 1e-6
_REMEDY = "Train or download the model again; do not edit bundle.json by hand."


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An object of `bundle.json`: frozen, its types are checked when it is read, an unknown field is an error."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite number is null."""
        return msgspec.json.decode(msgspec.json.encode(self), type=dict[str, Any])


class Calibration(Facts, frozen=True):
    """What turns logits into probabilities; the case mix comes on top.

    Attributes:
        temperature: divides the logits; finite and above 0; 1 leaves them as they are.
        training_prior: class shares that the network saw, after sampling, in the order of the classes; all above 0,
            sum 1.
        bias: added to each class's score; finite, one a class. None given: all 0.

    Raises:
        BundleError: (code `bad_value`) a value breaks these rules.
    """

    temperature: float
    training_prior: tuple[float, ...]
    bias: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise _bad_value(f"Calibration temperature must be a finite number above 0: got {self.temperature}.")
        shares = self.training_prior
        above_0 = all(math.isfinite(share) and share > 0 for share in shares)
        if len(shares) < 2 or not above_0 or abs(math.fsum(shares) - 1.0) > PRIOR_SUM_TOLERANCE:
            raise _bad_value(
                f"Calibration training_prior must be 2 or more shares above 0 with the sum 1: got {shares}."
            )
        if not self.bias:
            msgspec.structs.force_setattr(self, "bias", (0.0,) * len(shares))
        if len(self.bias) != len(shares) or not all(map(math.isfinite, self.bias)):
            raise _bad_value(f"Calibration bias must be {len(shares)} finite numbers: got {self.bias}.")


def probabilities(logits: npt.ArrayLike, calibration: Calibration, shares: Sequence[float]) -> npt.NDArray[np.float64]:
    """Turn logits into probabilities at a case mix.

    `softmax(logits / temperature + bias + log shares - log training_prior)`: temperature scaling (Guo et al. 2017,
    arXiv:1706.04599), bias-corrected (Alexandari et al. 2020, arXiv:1901.06852) where that was found to help, and
    Bayes' rule for another case mix (Saerens et al. 2002, doi 10.1162/089976602753284446).

    Args:
        logits: (n, classes), real numbers, normally float32; n may be 0.
        calibration: as fitted, for the same classes in the same order.
        shares: (classes,) how common each class is beforehand; above 0, sum 1; see `CaseMix`.

    Returns:
        (n, classes) float64, every value in 0..1, rows sum to 1.

    Raises:
        BundleError: another number of classes (code `shape`), or a logit that is NaN or infinite
            (`not_finite`).
    """
    scores = _matrix("Logits", logits, len(calibration.training_prior))
    shift = np.array(calibration.bias) + np.log(shares) - np.log(calibration.training_prior)
    return softmax(scores / calibration.temperature + shift)


def softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the softmax of each row of (n, classes) float64, safe for large values."""
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True), np.float64)


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
