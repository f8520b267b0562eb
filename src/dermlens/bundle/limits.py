"""Sets, doubt and referral at a case mix: computed from stored lesions when a model is loaded.

A bundle keeps the logits, class and lesion of two roles that taught the network nothing: limits are fitted on
`calibrate` and measured on `test`. So they follow any case mix. Each lesion counts once within its class, and a class
counts as much as its share in the mix (label shift: Podkopaev and Ramdas 2021, arXiv:2103.03323).

*Prediction sets* are a beginning of the classes by falling probability, with one of two scores: the probability of a
class (Sadinle et al. 2019, arXiv:1609.00451), or the cumulative probability of the classes before it (adaptive sets:
Romano et al. 2020, arXiv:2006.02544, without randomisation). The limit is the conformal quantile of the score of the
true class (Vovk et al. 2005), and no less than that of melanomas alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dermlens.bundle.case_mix import CaseMix
from dermlens.bundle.probabilities import Calibration, Facts, probabilities
from dermlens.diagnoses import DIAGNOSES
from dermlens.errors import BundleError
from dermlens.text import Figure, wilson_interval

SetMethod = Literal["probability", "cumulative"]
METHODS: tuple[SetMethod, ...] = ("probability", "cumulative")
LEVEL = 0.9
SENSITIVITIES = (0.95, 0.9)
MIN_LESIONS = 20  # in all for sets and doubt, on each side for referral: fewer, and 95 % of them is one lesion
LOW_CONFIDENCE_SHARE = 0.2  # of the answers, those whose diagnosis is least probable
SURE = 0.5  # a diagnosis as probable as all others together is never doubted
MELANOMA = "MEL"
ROLES = ("calibrate", "test")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Lesions:
    """Labelled images as the network answered them: logits (n, classes) float32, classes (n,), lesion numbers (n,)."""

    logits: npt.NDArray[np.float32]
    classes: Ints
    lesions: Ints

    def __post_init__(self) -> None:
        n = len(self.classes)
        good = self.logits.ndim == 2 and len(self.logits) == n and self.classes.shape == self.lesions.shape == (n,)
        if good and n:
            good = self.classes.min() >= 0 and self.classes.max() < self.logits.shape[1] and self.lesions.min() >= 0
        if not good or not np.isfinite(self.logits).all():
            raise BundleError("The stored lesions do not fit together.", remedy="Train the model again.")

    def arrays(self, role: str) -> dict[str, npt.NDArray[Any]]:
        """Return what `lesions.npz` holds of it."""
        numbers = np.unique(self.lesions, return_inverse=True)[1].astype(np.int32)
        values = {"logits": self.logits.astype(np.float32), "classes": self.classes.astype(np.int32)}
        return {f"{role}_{name}": value for name, value in {**values, "lesions": numbers}.items()}

    @classmethod
    def read(cls, arrays: Mapping[str, npt.NDArray[Any]], role: str) -> Lesions:
        """Read what `arrays` wrote. Raises KeyError, BundleError: an array is missing or damaged."""
        logits, classes, lesions = (arrays[f"{role}_{name}"] for name in ("logits", "classes", "lesions"))
        return cls(logits.astype(np.float32), classes.astype(np.int64), lesions.astype(np.int64))

    def counts(self, n_classes: int) -> Ints:
        """Return how many lesions each class has, (classes,)."""
        return np.array([len(np.unique(self.lesions[self.classes == c])) for c in range(n_classes)], np.int64)


def no_lesions(n_classes: int) -> Lesions:
    """Return the lesions of an empty role."""
    return Lesions(np.zeros((0, n_classes), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))


def mix_weights(classes: Ints, lesions: Ints, shares: Sequence[float]) -> Floats:
    """Return the weight of each image, (n,) with the sum 1: its class has its share, a lesion counts once in it.

    Shares of classes without images go to the others, in proportion.
    """
    if not len(classes):
        return np.zeros(0)
    pairs, place = np.unique(np.stack([classes, lesions]), axis=1, return_inverse=True)
    images = np.bincount(place.ravel())
    of_class = np.bincount(pairs[0], minlength=len(shares))
    weights = np.asarray(shares, np.float64)[classes] / of_class[classes] / images[place.ravel()]
    return np.asarray(weights / weights.sum(), np.float64)


class SetRule(Facts, frozen=True, omit_defaults=False):
    """How prediction sets are made.

    Attributes:
        method: what the limit is on: the probability of a class, or the cumulative probability before it.
        level: share of the lesions, averaged by the case mix, and of the melanomas, whose class is in the set.
        lengths: mean number of classes by method, on the select lesions that chose between the two.
    """

    method: SetMethod
    level: float = LEVEL
    lengths: dict[SetMethod, float] | None = None


class OperatingPoint(Facts, frozen=True, omit_defaults=False):
    """From which probability on a specialist should see a person, and what that gives.

    Attributes:
        name: such as `malignant_95`.
        aim, aimed_at: which kind of lesion it looks for, and at which sensitivity.
        codes: the classes whose probabilities are added up.
        threshold: referral is advised at or above it, 0 to 1, and where the first diagnosis is one of `codes`.
        fitted_on: how many lesions of that kind and of others.
        sensitivity, specificity, referred: on the test lesions, averaged by the case mix.
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


@dataclass(frozen=True)
class Limits:
    """What a model's answers are judged by at one case mix.

    Attributes:
        set_limit: the largest score of a class in the set; None where there are no sets.
        max_set: an answer with more classes in its set is uncertain.
        min_confidence: an answer whose diagnosis is less probable is uncertain.
        points: the operating points; referral: the one that answers follow, None where there is none.
    """

    mix: CaseMix
    shares: tuple[float, ...]
    method: SetMethod
    set_limit: float | None
    max_set: int
    min_confidence: float
    points: tuple[OperatingPoint, ...]
    referral: OperatingPoint | None

    def sets(self, probability: Floats) -> Bools | None:
        """Return (n, classes), True where a class cannot be ruled out: always a beginning of the order.

        The first always is one of them, and where it is too improbable to be named alone, so is the second.
        """
        if self.set_limit is None:
            return None
        scores = set_scores(probability, self.method)
        least = np.where(probability.max(axis=1) < self.min_confidence, 2, 1)
        place = np.argsort(order_of(probability), axis=1)
        return np.asarray((scores <= self.set_limit) | (place < least[:, None]), np.bool_)


def order_of(probability: Floats) -> npt.NDArray[np.intp]:
    """Return the classes of each row by falling probability, (n, classes); a tie keeps the order of the classes."""
    return np.argsort(-probability, axis=1, kind="stable")


def set_scores(probability: Floats, method: SetMethod) -> Floats:
    """Return how far down the order each class is, (n, classes): it rises strictly along the order."""
    order = order_of(probability)
    falling = np.take_along_axis(probability, order, axis=1)
    along = 1 - falling if method == "probability" else np.cumsum(falling, axis=1) - falling
    # the place breaks ties, so that classes of one probability (or of none) still have an order
    along = np.maximum.accumulate(along, axis=1) + np.arange(along.shape[1]) * 1e-12
    scores: Floats = np.empty_like(along)
    np.put_along_axis(scores, order, along, axis=1)
    return scores


def weighted_quantile(values: Floats, weights: Floats, share: float) -> float:
    """Return the smallest of (n,) values with `share` of the weight at or below it; infinite where there is none."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    place = int(np.searchsorted(reached, share - 1e-9))
    return float(values[order][place]) if place < len(order) else math.inf


def fit_set_limit(
    probability: Floats, known: Lesions, codes: Sequence[str], shares: Sequence[float], method: SetMethod, level: float
) -> float:
    """Return the limit on `set_scores` that holds the true class of `level` of the lesions, and of the melanomas.

    Fewer than 9 melanomas cannot promise 90 % of others: then the limit holds all of these.
    """
    scores = set_scores(probability, method)[np.arange(len(known.classes)), known.classes]
    counts = known.counts(len(codes))
    present = np.where(counts > 0, shares, 0.0) / np.sum(np.asarray(shares)[counts > 0])
    own = np.sum(present[counts > 0] ** 2 / counts[counts > 0])  # the weight that a new lesion is expected to have
    limit = weighted_quantile(scores, mix_weights(known.classes, known.lesions, shares), min(1.0, level * (1 + own)))
    if MELANOMA in codes and counts[codes.index(MELANOMA)]:
        rows = known.classes == codes.index(MELANOMA)
        weights = mix_weights(known.classes[rows], known.lesions[rows], shares)
        needed = min(1.0, level * (1 + 1 / counts[codes.index(MELANOMA)]))
        limit = max(limit, weighted_quantile(scores[rows], weights, needed))
    return limit


def measure_sets(inside: Bools, known: Lesions, codes: Sequence[str], shares: Sequence[float]) -> dict[str, Any]:
    """Return how often the sets hold the true class and how long they are: averaged by the mix, and by class.

    Intervals are Wilson's over the lesions; for the average, over as many as its weights are worth (Kish 1965).
    """
    covered = inside[np.arange(len(known.classes)), known.classes].astype(np.float64)
    length = inside.sum(axis=1)

    def row(rows: Bools) -> dict[str, Any]:
        lesions = len(np.unique(known.lesions[rows]))
        found: dict[str, Any] = {"n": int(rows.sum()), "n_lesions": lesions, "coverage": None, "mean_size": None}
        if lesions:
            weights = mix_weights(known.classes[rows], known.lesions[rows], shares)
            found["coverage"] = weighted_share(covered[rows], weights, known.lesions[rows])
            found["mean_size"] = float(weights @ length[rows])
        return found

    by_size = np.bincount(length, minlength=len(codes) + 1)
    return {
        **row(np.ones(len(covered), bool)),
        "by_size": {str(k): int(n) for k, n in enumerate(by_size) if n},
        "per_class": {code: row(known.classes == c) for c, code in enumerate(codes)},
    }


def weighted_share(hits: npt.ArrayLike, weights: Floats, lesions: Ints) -> Figure:
    """Return a weighted share with Wilson's interval over the effective number of lesions; null without weight."""
    if not len(weights) or weights.sum() <= 0:
        return {"value": None, "low": None, "high": None, "reason": "no lesions of that kind"}
    value = min(1.0, float(np.asarray(hits, np.float64) @ weights / weights.sum()))
    low, high = wilson_interval(value, lesions_worth(weights, lesions))
    return {"value": value, "low": low, "high": high}


def lesions_worth(weights: Floats, lesions: Ints) -> float:
    """Return how many lesions of equal weight tell as much as these, 1 or more (Kish 1965); both (n,), by image."""
    by_lesion = np.bincount(lesions, weights=weights)
    return max(1.0, float(by_lesion.sum() ** 2 / np.sum(by_lesion**2)))


def grave_codes(codes: Sequence[str]) -> tuple[str, ...]:
    """Return the codes that are known to be malignant or premalignant."""
    known = ((code, DIAGNOSES.get(code)) for code in codes)
    return tuple(code for code, fact in known if fact and fact.malignancy in ("malignant", "premalignant"))


def aims(codes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what a model of these classes can look for: name -> codes."""
    grave = grave_codes(codes)
    found = {"malignant": grave} if grave and len(grave) < len(codes) else {}
    return {**found, **({"melanoma": (MELANOMA,)} if MELANOMA in codes else {})}


def is_referred(probability: Floats, columns: Sequence[int], threshold: float) -> Bools:
    """Return (n,), True where the classes of `columns` together reach the threshold, or the first diagnosis is one."""
    first = np.isin(order_of(probability)[:, 0], columns)
    return np.asarray(first | (probability[:, list(columns)].sum(axis=1) >= threshold), np.bool_)


def sides(known: Lesions, codes: Sequence[str], members: Sequence[str]) -> tuple[int, int]:
    """Return how many lesions are of the named classes, and how many are of others."""
    positive = np.isin(known.classes, [codes.index(code) for code in members])
    return len(np.unique(known.lesions[positive])), len(np.unique(known.lesions[~positive]))


def fit_limits(
    mix: CaseMix,
    codes: Sequence[str],
    calibration: Calibration,
    known: Mapping[str, Lesions],
    *,
    rule: SetRule | None,
    sensitivity: float,
) -> Limits:
    """Return the limits at a case mix.

    Args:
        known: lesions of "calibrate", to fit on, and of "test", to measure the operating points on.
        rule: of the sets; None: none.
        sensitivity: of the operating point that answers follow.
    """
    shares, fitted_on = mix.of(codes), known["calibrate"]
    probability = probabilities(fitted_on.logits, calibration, shares)
    enough = len(np.unique(fitted_on.lesions)) >= MIN_LESIONS
    limit, least = None, 0.0
    if enough:
        weights = mix_weights(fitted_on.classes, fitted_on.lesions, shares)
        least = min(SURE, weighted_quantile(probability.max(axis=1), weights, LOW_CONFIDENCE_SHARE))
        if rule is not None:
            limit = fit_set_limit(probability, fitted_on, codes, shares, rule.method, rule.level)
    measured = probabilities(known["test"].logits, calibration, shares)
    points = []
    for aim, members in aims(codes).items():
        if min(sides(fitted_on, codes, members)) < MIN_LESIONS:
            continue
        for aimed_at in dict.fromkeys((sensitivity, *SENSITIVITIES)):
            points.append(
                _point(aim, members, aimed_at, codes, shares, (fitted_on, probability), (known["test"], measured))
            )
    referral = next((point for point in points if point.aim == "malignant" and point.aimed_at == sensitivity), None)
    longest = max(1, math.ceil(len(codes) / 2))
    method = METHODS[0] if rule is None else rule.method
    return Limits(mix, shares, method, limit, longest, least, tuple(points), referral)


def _point(
    aim: str,
    members: tuple[str, ...],
    aimed_at: float,
    codes: Sequence[str],
    shares: Sequence[float],
    fitted: tuple[Lesions, Floats],
    measured: tuple[Lesions, Floats],
) -> OperatingPoint:
    """Choose the largest threshold that keeps `aimed_at` of the positive lesions, and measure it on others."""
    columns = [codes.index(code) for code in members]
    lesions, probability = fitted
    positive = np.isin(lesions.classes, columns)
    weights = mix_weights(lesions.classes[positive], lesions.lesions[positive], shares)
    threshold = -weighted_quantile(-probability[positive][:, columns].sum(axis=1), weights, aimed_at)
    test, values = measured
    grave, referred = np.isin(test.classes, columns), is_referred(values, columns, threshold)

    def share(hits: Bools, rows: Bools) -> Figure:
        weights = mix_weights(test.classes[rows], test.lesions[rows], shares)
        return weighted_share(hits[rows], weights, test.lesions[rows])

    count, others = sides(lesions, codes, members)
    return OperatingPoint(
        name=f"{aim}_{aimed_at * 100:g}",
        aim=aim,
        codes=members,
        aimed_at=aimed_at,
        threshold=threshold,
        fitted_on={"positive_lesions": count, "other_lesions": others},
        sensitivity=share(referred, grave),
        specificity=share(~referred, ~grave),
        referred=share(referred, np.ones(len(grave), bool)),
    )
