"""Do two files show one photograph, cropped or tilted? Local features propose a similarity transform, pixels decide.

SIFT features (Lowe 2004) of both images are matched, RANSAC finds the rotation, scale and shift that most of them agree
on, and the first image is laid over the second. One photograph then agrees in its fine structure too; another
photograph of the same lesion agrees at best in its outline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.data.images import InputSpec

SPEC = InputSpec(size_px=160)
MAX_SCALE = 1.8
_MIN_MATCHES = 10
_RATIO = 0.8
_MAX_FEATURES = 150
_REPROJECTION_PX = 2.5
_FINE_PX, _COARSE_PX = 1.2, 5.0
_BLOCK_PX = 20
_LEAST_CONTRAST = 1.5  # of a block's fine structure, in grey levels; what is below is noise
_SIDE = SPEC.size_px - 1

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Sketch:
    """What is compared of an image: grey uint8 (160, 160), points float32 (k, 2) pixels, descriptors uint8 (k, 128)."""

    grey: Grey
    points: npt.NDArray[np.float32]
    descriptors: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Overlay:
    """How one image lies over another.

    Attributes:
        correlation: of the fine structure where they overlap.
        worst: correlation that nine in ten of the overlapping blocks of 20 pixels reach: glare, a hair or a change of
            perspective spoils some blocks of another photograph, and leaves the whole alike.
        overlap: share of the second image that the first covers.
        scale, angle_deg: of the first to the second.
        mirrored: whether the first is mirrored before.
    """

    correlation: float
    worst: float
    overlap: float
    scale: float
    angle_deg: float
    mirrored: bool


def sketch(pixels: npt.NDArray[np.uint8]) -> Sketch:
    """Return the sketch of uint8 RGB (160, 160, 3)."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.uint8)
    detector = cv2.SIFT.create(_MAX_FEATURES, contrastThreshold=0.01, edgeThreshold=20)
    points, descriptors = detector.detectAndCompute(grey, None)
    if descriptors is None:
        return Sketch(grey, np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    places, first = np.unique(np.array([p.pt for p in points], np.float32), axis=0, return_index=True)
    return Sketch(grey, places, descriptors[first].astype(np.uint8))


def overlay(one: Sketch, other: Sketch) -> Overlay | None:
    """Return how `one` lies over `other`, mirrored if need be; None where no transform brings them together."""
    for mirrored in (False, True):
        sides = mirror(one) if mirrored else one
        matrix = _transform(sides, other)
        if matrix is not None:
            scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
            angle = float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
            if 1 / MAX_SCALE <= scale <= MAX_SCALE:
                return Overlay(*_agreement(sides.grey, other.grey, matrix), scale, angle, mirrored)
    return None


def mirror(one: Sketch) -> Sketch:
    """Return the sketch of the mirrored image: a SIFT descriptor is 4 x 4 cells of 8 directions, in mirrored order."""
    cells = one.descriptors.reshape(-1, 4, 4, 8)[:, ::-1][..., [0, 7, 6, 5, 4, 3, 2, 1]]
    points = one.points * np.array([-1, 1], np.float32) + np.array([_SIDE, 0], np.float32)
    return Sketch(np.ascontiguousarray(one.grey[:, ::-1]), points, np.ascontiguousarray(cells).reshape(-1, 128))


def _transform(one: Sketch, other: Sketch) -> npt.NDArray[np.float64] | None:
    pairs = _matches(one, other)
    if len(pairs) < _MIN_MATCHES:
        return None
    matrix, inside = cv2.estimateAffinePartial2D(
        one.points[pairs[:, 0]],
        other.points[pairs[:, 1]],
        method=cv2.RANSAC,
        ransacReprojThreshold=_REPROJECTION_PX,
        maxIters=500,
        confidence=0.99,
    )
    if matrix is None or int(inside.sum()) < _MIN_MATCHES:
        return None
    return np.asarray(matrix, np.float64)


def _matches(one: Sketch, other: Sketch) -> npt.NDArray[np.int64]:
    """Return (m, 2) feature numbers that are each other's nearest, clearly nearer than the second (Lowe's ratio)."""
    if min(len(one.points), len(other.points)) < _MIN_MATCHES:
        return np.zeros((0, 2), np.int64)
    likeness = _unit(one.descriptors) @ _unit(other.descriptors).T
    rows = np.arange(len(likeness))
    best = likeness.argmax(axis=1)
    mutual = likeness.argmax(axis=0)[best] == rows
    first = likeness[rows, best]
    likeness[rows, best] = -1
    second = likeness.max(axis=1)
    clear = (1 - first) < _RATIO**2 * (1 - second)
    return np.stack([rows[clear & mutual], best[clear & mutual]], axis=1)


def _unit(descriptors: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the roots of descriptors of sum 1: their products compare better (Arandjelovic and Zisserman 2012)."""
    values = descriptors.astype(np.float32)
    return np.asarray(np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1)), np.float32)


def _agreement(one: Grey, other: Grey, matrix: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return correlation, worst and overlap of `Overlay`."""
    size = other.shape[::-1]
    laid = cv2.warpAffine(one, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    inside = cv2.warpAffine(np.full_like(one, 255), matrix, size, flags=cv2.INTER_NEAREST)
    overlap = float((inside > 0).mean())
    edge = round(_COARSE_PX) + 1
    inside = cv2.copyMakeBorder(inside, edge, edge, edge, edge, cv2.BORDER_CONSTANT)
    mask = (cv2.erode(inside, np.ones((2 * edge + 1, 2 * edge + 1), np.uint8))[edge:-edge, edge:-edge] > 0).astype(
        np.float32
    )
    a, b = _fine(laid) * mask, _fine(other) * mask
    whole = float((a * b).sum()) / max(1e-6, float(np.sqrt((a * a).sum() * (b * b).sum())))
    return whole, _worst_blocks(a, b, mask), overlap


def _worst_blocks(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], mask: npt.NDArray[np.float32]) -> float:
    """Return the correlation that nine in ten blocks reach; blocks overlap by half."""
    half = _BLOCK_PX // 2
    inner = slice(half, -half, half), slice(half, -half, half)
    covered, aa, bb, ab = (cv2.boxFilter(v, -1, (_BLOCK_PX, _BLOCK_PX))[inner] for v in (mask, a * a, b * b, a * b))
    counted = (covered > 0.99) & (np.maximum(aa, bb) > _LEAST_CONTRAST**2)
    if counted.sum() < 4:
        return 0.0
    return float(np.percentile(ab[counted] / np.sqrt(np.maximum(aa[counted] * bb[counted], 1e-6)), 10))


def _fine(grey: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return what lies between the two scales: structure without noise, light and shade."""
    values = grey.astype(np.float32)
    band = cv2.GaussianBlur(values, (0, 0), _FINE_PX) - cv2.GaussianBlur(values, (0, 0), _COARSE_PX)
    return band.astype(np.float32)
