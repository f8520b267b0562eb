"""Do two files show one photograph, cropped or tilted? Local features propose a similarity transform, pixels decide.

SIFT features (Lowe 2004) of both images are matched, RANSAC finds the rotation, scale and shift that most of them agree
on, and the first image is laid over the second. One photograph then agrees in its fine structure too; another
photograph of the same lesion agrees at best in its outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.data.images import InputSpec

SPEC = InputSpec(size_px=160)
MIN_INLIERS = 8
MIN_OVERLAP = 0.4  # of the image's area
MAX_SCALE = 1.8
_RATIO = 0.85
_MAX_FEATURES = 300
_REPROJECTION_PX = 2.5
_FINE_PX, _COARSE_PX = 1.2, 5.0

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Sketch:
    """What is compared of an image: grey pixels (160, 160), feature points (k, 2) in pixels, descriptors (k, 128)."""

    grey: Grey
    points: npt.NDArray[np.float32]
    descriptors: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Overlay:
    """How one image lies over another: correlation of the fine structure, share of overlap, scale, angle, inliers."""

    correlation: float
    overlap: float
    scale: float
    angle_deg: float
    inliers: int


def sketch(pixels: npt.NDArray[np.uint8]) -> Sketch:
    """Return the sketch of uint8 RGB (160, 160, 3)."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.uint8)
    detector = cv2.SIFT_create(_MAX_FEATURES, contrastThreshold=0.01, edgeThreshold=20)
    points, descriptors = detector.detectAndCompute(grey, None)
    if descriptors is None:
        return Sketch(grey, np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-6))  # Arandjelovic 2012
    return Sketch(grey, np.array([p.pt for p in points], np.float32), descriptors.astype(np.float32))


def overlay(one: Sketch, other: Sketch) -> Overlay | None:
    """Return how `one` lies over `other`; None where no transform brings them together."""
    pairs = _matches(one, other)
    if len(pairs) < MIN_INLIERS:
        return None
    matrix, inside = cv2.estimateAffinePartial2D(
        one.points[pairs[:, 0]],
        other.points[pairs[:, 1]],
        method=cv2.RANSAC,
        ransacReprojThreshold=_REPROJECTION_PX,
        maxIters=1000,
        confidence=0.995,
    )
    if matrix is None or int(inside.sum()) < MIN_INLIERS:
        return None
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if not 1 / MAX_SCALE <= scale <= MAX_SCALE:
        return None
    correlation, overlap = _agreement(one.grey, other.grey, matrix)
    angle = float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    return Overlay(correlation, overlap, scale, angle, int(inside.sum()))


def _matches(one: Sketch, other: Sketch) -> npt.NDArray[np.int64]:
    """Return (m, 2) feature numbers whose nearest neighbour is clearly nearer than the second."""
    if len(one.points) < MIN_INLIERS or len(other.points) < MIN_INLIERS:
        return np.zeros((0, 2), np.int64)
    likeness = one.descriptors @ other.descriptors.T
    rows = np.arange(len(likeness))
    best = likeness.argmax(axis=1)
    first = likeness[rows, best]
    likeness[rows, best] = -1
    second = likeness.max(axis=1)
    clear = np.sqrt(np.maximum(0, 2 - 2 * first)) < _RATIO * np.sqrt(np.maximum(0, 2 - 2 * second))
    return np.stack([rows[clear], best[clear]], axis=1)


def _agreement(one: Grey, other: Grey, matrix: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the correlation of the fine structure where the two overlap, and the share that overlaps."""
    size = other.shape[::-1]
    laid = cv2.warpAffine(one, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    inside = cv2.warpAffine(np.full_like(one, 255), matrix, size, flags=cv2.INTER_NEAREST)
    edge = int(_COARSE_PX)
    inside = cv2.erode(cv2.copyMakeBorder(inside, edge, edge, edge, edge, cv2.BORDER_CONSTANT), np.ones((3, 3)))
    inside = cv2.erode(inside, np.ones((2 * edge + 1, 2 * edge + 1), np.uint8))[edge:-edge, edge:-edge] > 0
    a, b = _fine(laid)[inside], _fine(other)[inside]
    if a.size == 0:
        return 0.0, 0.0
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt(float(a @ a) * float(b @ b)))
    return (float(a @ b) / scale if scale else 0.0), float(inside.mean())


def _fine(grey: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Return what lies between the two scales: structure without noise, light and shade."""
    values = grey.astype(np.float32)
    band = cv2.GaussianBlur(values, (0, 0), _FINE_PX) - cv2.GaussianBlur(values, (0, 0), _COARSE_PX)
    return band.astype(np.float32)
