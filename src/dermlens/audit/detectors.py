"""Hair, rulers, ink and dark corners: how often they are on the images of each class.

A model can learn that a ruler means melanoma, because doctors measure what worries them. The detectors are plain image
processing, and wrong on some images; `docs/audit.md` says how often they were right on images looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.audit.cache import Store, for_each_content
from dermlens.audit.facts import ImageFacts
from dermlens.audit.findings import Finding
from dermlens.data.framing import PIXEL_PATH_VERSION
from dermlens.data.images import InputSpec, Pixels, load_image
from dermlens.data.records import Record
from dermlens.errors import DermlensError
from dermlens.reporting.progress import Advance
from dermlens.text import wilson_interval

NAMES = ("hair", "ruler", "ink", "dark_corners")
WORDS = {"hair": "hair", "ruler": "a ruler", "ink": "ink", "dark_corners": "dark corners"}
VERSION = f"1-{PIXEL_PATH_VERSION}"
"""Raise the first number when a detector would answer otherwise."""

SPEC = InputSpec(size_px=224, framing="squash")
MIN_DIFFERENCE = 0.1  # between the rates of two classes: smaller ones are not worth a finding
LEVEL = 0.01  # of all tests of a data set together (Bonferroni)
_THREADS = 2
_RIM = 4


@dataclass(frozen=True)
class Rate:
    """How many of a class's lesions show an artefact, with the 95 % Wilson interval of the share."""

    lesions: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Rates:
    """One artefact: its rate in each class, and the p value of "equally frequent in all classes"."""

    by_class: dict[str, Rate]
    p_value: float


Artefacts: TypeAlias = dict[str, Rates]


def hair(pixels: Pixels) -> bool:
    """Whether long thin dark lines cross the image (closing by lines, as DullRazor does: Lee et al. 1997)."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    closed = np.max([cv2.morphologyEx(grey, cv2.MORPH_CLOSE, element) for element in _LINES], axis=0)
    lit = cv2.blur(grey, (21, 21)) > 60  # not the dark rim of the optics, nor a black lesion
    dark = (((closed.astype(np.int16) - grey) > 22) & lit).astype(np.uint8)
    dark[:_RIM], dark[-_RIM:], dark[:, :_RIM], dark[:, -_RIM:] = 0, 0, 0, 0
    return _length_of_lines(dark) >= 110


def ruler(pixels: Pixels) -> bool:
    """Whether short lines repeat evenly along a side of the image."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    depth = 16
    sides = grey[:depth], grey[::-1][:depth], grey.T[:depth], grey.T[::-1][:depth]  # each the outermost row first
    return max(_evenness(side) for side in sides) >= 0.48


def ink(pixels: Pixels) -> bool:
    """Whether a patch is blue, violet or green, clearly more so than the skin, and mostly outside the middle.

    In the middle is the lesion, which may be blue itself.
    """
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.GaussianBlur(lab, (0, 0), 1.5)
    a, b = lab[..., 1], lab[..., 2]
    lit = cv2.erode((cv2.blur(lab[..., 0], (9, 9)) > 25).astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    around = lit & ~_MIDDLE
    if around.mean() < 0.1:
        return False
    away = np.hypot(a - np.median(a[around]), b - np.median(b[around]))
    coloured = (((b < -14) & (a < -1.2 * b)) | (a < -8)) & (away > 22) & lit
    outside = int((coloured & ~_MIDDLE).sum())
    return outside >= 60 and outside >= 0.6 * int(coloured.sum())


def dark_corners(pixels: Pixels) -> bool:
    """Whether the round edge of the optics darkens three corners or all four."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    edge = 14
    ends = (slice(0, edge), slice(-edge, None))
    corners = [grey[y, x].mean() for y in ends for x in ends]
    limit = min(60.0, 0.45 * float(np.median(grey)))
    return sum(bool(mean < limit) for mean in corners) >= 3


def artefacts_of(pixels: Pixels) -> tuple[bool, ...]:
    """Return which of `NAMES` are on an image, uint8 RGB (224, 224, 3) of the whole frame."""
    return tuple(bool(detector(pixels)) for detector in (hair, ruler, ink, dark_corners))


def read_artefacts(
    records: Sequence[Record], facts: Sequence[ImageFacts], *, cache: bool = False, progress: Advance | None = None
) -> dict[str, tuple[bool, ...]]:
    """Return which artefacts are on each readable file, by its SHA-256.

    Args:
        cache: keep the answers by content in the user's cache.
    """
    store: Store[tuple[bool, ...]] = Store(f"artefacts {VERSION}", tuple[bool, ...], enabled=cache)
    keys = [fact.sha256 or "" for fact in facts]
    with ThreadPoolExecutor(_THREADS) as pool:
        return for_each_content(keys, store, lambda part: pool.map(_look_at, [records[i] for i in part]), progress)


def artefact_rates(
    records: Sequence[Record], facts: Sequence[ImageFacts], found: Mapping[str, tuple[bool, ...]], groups: Sequence[int]
) -> Artefacts:
    """Return the rates of each artefact by class; a lesion counts once per class, by its first readable image."""
    first: dict[tuple[str, int], tuple[bool, ...]] = {}
    for record, fact, group in zip(records, facts, groups, strict=True):
        if fact.sha256 is not None and fact.sha256 in found:
            first.setdefault((record.diagnosis, group), found[fact.sha256])
    classes = sorted({code for code, _ in first})
    seen = {code: np.array([row for (own, _), row in first.items() if own == code]) for code in classes}
    result = {}
    for place, name in enumerate(NAMES):
        hits = {code: (int(rows[:, place].sum()), len(rows)) for code, rows in seen.items()}
        result[name] = Rates({code: _rate(*pair) for code, pair in hits.items()}, _p_value(list(hits.values())))
    return result


def artefact_findings(artefacts: Artefacts) -> list[Finding]:
    """Return a warning for each artefact whose rate differs between classes clearly and by more than chance."""
    findings = []
    for name, rates in artefacts.items():
        shares = {code: rate.share for code, rate in rates.by_class.items() if rate.lesions >= 10}
        if len(shares) < 2 or rates.p_value > LEVEL / len(NAMES):
            continue
        most, least = max(shares, key=lambda code: shares[code]), min(shares, key=lambda code: shares[code])
        if shares[most] - shares[least] < MIN_DIFFERENCE:
            continue
        evidence = (
            f"{WORDS[name].capitalize()} on {_share(rates.by_class[most])} of {most}, but on "
            f"{_share(rates.by_class[least])} of {least}, according to the detector."
        )
        remedy = "Check with heat maps what the model uses; test it with and without such images."
        findings.append(Finding.of("artefact_by_class", [], evidence, remedy))
    return findings


def _look_at(record: Record) -> tuple[bool, ...] | None:
    try:
        return artefacts_of(load_image(record.path, SPEC))
    except DermlensError:
        return None


def _line(angle_deg: float, length: int = 15) -> Pixels:
    """Return a structuring element: a line of that angle through the middle."""
    element = np.zeros((length, length), np.uint8)
    middle = length // 2
    dx, dy = middle * np.cos(np.radians(angle_deg)), middle * np.sin(np.radians(angle_deg))
    ends = [(round(middle + sign * dx), round(middle + sign * dy)) for sign in (-1, 1)]
    return cv2.line(element, ends[0], ends[1], 1).astype(np.uint8)


_LINES = [_line(angle) for angle in (0, 45, 90, 135)]


_SIDE = SPEC.size_px
_MIDDLE = cv2.circle(np.zeros((_SIDE, _SIDE), np.uint8), (_SIDE // 2, _SIDE // 2), round(0.3 * _SIDE), 1, -1) > 0


def _length_of_lines(mask: Pixels) -> float:
    """Return the summed length in pixels of the long thin pieces of a mask; a mesh of crossing hairs is one piece."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    half_width = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    total = 0.0
    for number, (left, top, width, height, area) in enumerate(stats[1:count], start=1):
        extent = float(np.hypot(width, height))
        if extent >= 35 and area <= 4.0 * extent:
            total += extent
        elif extent >= 150:
            box = slice(top, top + height), slice(left, left + width)
            if half_width[box][labels[box] == number].max() <= 3.5:
                total += extent
    return total


def _evenness(side: npt.NDArray[np.float32]) -> float:
    """Return how strongly dark lines across a border repeat, 0 to 1: the autocorrelation at the first two periods."""
    lines = cv2.GaussianBlur(side, (0, 0), 6.0) - side
    profile = lines.mean(axis=0)
    profile = profile - cv2.blur(profile[None], (31, 1))[0]
    power = float(profile @ profile)
    if power / len(profile) < 1.5:
        return 0.0
    spread = np.correlate(profile, profile, "full")[len(profile) - 1 :] / power
    best = 0.0
    for lag in range(4, 36):
        peak = spread[lag] > spread[lag - 1] and spread[lag] >= spread[lag + 1]
        if peak and spread[lag // 2] < 0.1:
            best = max(best, float(min(spread[lag], spread[2 * lag - 1 : 2 * lag + 2].max())))
    return best


def _rate(hits: int, n: int) -> Rate:
    low, high = wilson_interval(hits / n, n)
    return Rate(n, round(hits / n, 4), round(low, 4), round(high, 4))


def _p_value(hits: Sequence[tuple[int, int]]) -> float:
    """Return the p value of the chi-squared test that all classes have one rate; 1 where there is nothing to test."""
    from scipy.stats import chi2_contingency

    table = np.array([[with_it, n - with_it] for with_it, n in hits])
    if len(table) < 2 or (table.sum(axis=0) == 0).any():
        return 1.0
    return float(f"{chi2_contingency(table, correction=False).pvalue:.3g}")


def _share(rate: Rate) -> str:
    return f"{rate.share:.0%} [{rate.low:.0%}, {rate.high:.0%}] of the {rate.lesions} lesions"
