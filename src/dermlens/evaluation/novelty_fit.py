"""Fits what training images look like, and the limits of a picture's quality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dermlens.evaluation.weighted import Floats, Ints
from dermlens.inference.novelty import Novelty, normalised
from dermlens.inference.quality import DEFAULT_LIMITS, Quality, QualityLimits

KEPT = 0.95
DIRECTIONS = 64
PER_CLASS = 200  # images of a class that are looked at: with 600 the score is no better, and no class outweighs others
MIN_IMAGES = 40
MIN_LESIONS = 20
BEYOND = 0.005  # share of known pictures that may lie beyond each limit of quality


def sample_per_class(y_true: Ints, *, seed: int, most: int = PER_CLASS) -> Ints:
    """Return ascending rows, at most `most` of each class."""
    generator = np.random.default_rng(seed)
    rows = [np.flatnonzero(y_true == c) for c in np.unique(y_true)]
    return np.sort(np.concatenate([r if len(r) <= most else generator.choice(r, most, replace=False) for r in rows]))


def fit_novelty(
    embedding: npt.NDArray[np.floating],
    y_true: Ints,
    held_out: npt.NDArray[np.floating],
    lesions: Ints,
    *,
    kept: float = KEPT,
    directions: int = DIRECTIONS,
) -> Novelty | None:
    """Fit the score on training images and its threshold on lesions that the network has not learned from.

    Args:
        embedding: (n, d) of training images, y_true: (n,) their classes.
        held_out: (m, d) of other images, lesions: (m,) their lesion numbers.
        kept: share of those lesions that lies at or below the threshold.

    Returns:
        None where there are fewer than 40 training images or 20 held-out lesions.
    """
    if len(embedding) < MIN_IMAGES or len(np.unique(lesions)) < MIN_LESIONS:
        return None
    unit = normalised(embedding)
    mean = unit.mean(axis=0)
    k = max(1, min(directions, unit.shape[1] // 2, len(unit) // 10))
    components = principal_directions(unit - mean, k)
    inside = (unit - mean) @ components.T
    present, place = np.unique(y_true, return_inverse=True)
    means = np.stack([inside[place == c].mean(axis=0) for c in range(len(present))])
    whiten = _whitening(inside - means[place])
    # a first threshold stands in until the held-out scores are known
    draft = Novelty(mean, components, whiten, means @ whiten, (1.0, 1.0), 1.0, kept)
    distance, residual = _parts(draft, unit)
    scale = (max(float(distance.mean()), 1e-9), max(float(residual.mean()), 1e-6))
    scaled = Novelty(mean, components, whiten, means @ whiten, scale, 1.0, kept)
    threshold = lesion_quantile(scaled.score(held_out), lesions, kept)
    return Novelty(mean, components, whiten, means @ whiten, scale, max(threshold, 1e-9), kept)


def principal_directions(centred: Floats, k: int) -> Floats:
    """Return the k directions of largest spread, (k, d), rows orthonormal."""
    covariance = centred.T @ centred / len(centred)
    _, vectors = np.linalg.eigh(covariance)
    top: Floats = vectors[:, ::-1][:, :k].T
    return top


def _whitening(centred: Floats) -> Floats:
    """Return (k, k) that makes the covariance within the classes the identity; a thousandth is added to its spread."""
    covariance = centred.T @ centred / len(centred)
    values, vectors = np.linalg.eigh(covariance)
    floor = max(float(values.max()) * 1e-3, 1e-12)
    whiten: Floats = vectors / np.sqrt(np.maximum(values, 0.0) + floor)
    return whiten


def _parts(novelty: Novelty, unit: Floats) -> tuple[Floats, Floats]:
    """Return squared distance to the nearest class inside, and squared residual outside, each (n,)."""
    centred = unit - novelty.mean
    inside = centred @ novelty.components.T
    whitened = inside @ novelty.whiten
    distances = ((whitened[:, None] - novelty.class_means[None]) ** 2).sum(axis=2).min(axis=1)
    residual = np.maximum((centred**2).sum(axis=1) - (inside**2).sum(axis=1), 0.0)
    return distances, residual


def lesion_quantile(values: Floats, lesions: Ints, share: float) -> float:
    """Return the smallest of (n,) values at or below which `share` of the lesions lies, each lesion counted once."""
    weights = 1.0 / np.bincount(lesions)[lesions]
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(cumulated, share - 1e-9)])


def fit_quality(qualities: Sequence[Quality]) -> QualityLimits:
    """Return limits no stricter than the defaults that at most 1 in 200 known pictures is beyond, each."""
    if not qualities:
        return DEFAULT_LIMITS
    limits = {}
    for name, default in DEFAULT_LIMITS.as_dict().items():
        side, measure = name.split("_", 1)
        values = [getattr(quality, measure) for quality in qualities]
        known = float(np.quantile(values, BEYOND if side == "min" else 1 - BEYOND))
        limits[name] = min(default, known) if side == "min" else max(default, known)
    return QualityLimits.from_dict(limits)
