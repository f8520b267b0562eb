"""Does this image look like those the model learned from? A distance in the space of the embedding.

The embedding is brought to length 1 and split in two: its place in the subspace in which the training images vary, and
what is left outside of it. The score adds the Mahalanobis distance to the nearest class mean inside (Lee et al. 2018,
arXiv:1807.03888; on normalised features: Mueller and Hein 2025, arXiv:2505.18032) and the squared residual outside
(Wang et al. 2022, arXiv:2203.10807), each divided by its mean over training images. So a known image scores about 1.
One product of d x k numbers is all it costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dermlens.bundle.probabilities import Facts
from dermlens.errors import BundleError

METHOD: Literal["mahalanobis_residual"] = "mahalanobis_residual"
ARRAYS = ("mean", "components", "whiten", "class_means")

Floats = npt.NDArray[np.float64]


class NoveltyFacts(Facts, frozen=True):
    """What `bundle.json` holds of a `Novelty`; its arrays are in `trust.npz`."""

    method: Literal["mahalanobis_residual"]
    scale: tuple[float, float]
    threshold: float
    kept: float
    first_threshold: float | None = None


@dataclass(frozen=True, eq=False)
class Novelty:
    """What training images look like, and from where on an image is unlike them.

    Attributes:
        mean: (d,) of the normalised embeddings.
        components: (k, d), rows orthonormal: the directions in which they vary most.
        whiten: (k, k), makes the spread within the classes alike in all directions.
        class_means: (classes, k), whitened.
        scale: means over training images of the squared distance inside and of the squared residual outside.
        threshold: the score above which an image is novel.
        kept: which share of the lesions it was fitted on lies at or below the threshold.
        first_threshold: that of the training, where it was fitted anew to a site; None: the same.
    """

    mean: npt.NDArray[np.floating]
    components: npt.NDArray[np.floating]
    whiten: npt.NDArray[np.floating]
    class_means: npt.NDArray[np.floating]
    scale: tuple[float, float]
    threshold: float
    kept: float
    first_threshold: float | None = None

    def score(self, embedding: npt.NDArray[np.floating]) -> Floats:
        """Return how unlike the training images each row is, (n,) float64, about 1 for a known one.

        Args:
            embedding: (n, d), as the graph gives it.
        """
        centred = normalised(embedding) - self.mean
        # not `@`: on 16 rows OpenBLAS wakes a thread for each core, and these spin for many milliseconds afterwards
        inside = np.vecdot(centred[:, None, :], self.components)
        whitened = inside @ self.whiten
        # |a - b|^2 = |a|^2 - 2ab + |b|^2, so that no (n, classes, k) array is needed
        products = whitened @ self.class_means.T
        distances = (whitened**2).sum(1)[:, None] - 2 * products + (self.class_means**2).sum(1)
        residual = np.maximum((centred**2).sum(1) - (inside**2).sum(1), 0.0)
        return np.asarray((distances.min(1) / self.scale[0] + residual / self.scale[1]) / 2, np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Return what is stored in `bundle.json`; the arrays are in `trust.npz`."""
        return NoveltyFacts(METHOD, self.scale, self.threshold, self.kept, self.first_threshold).as_dict()

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return what is stored in `trust.npz`."""
        return {name: np.asarray(getattr(self, name), np.float32) for name in ARRAYS}

    @classmethod
    def read(cls, facts: NoveltyFacts, arrays: Mapping[str, npt.NDArray[np.floating]]) -> Novelty:
        """Read what `as_dict` and `arrays` wrote.

        Raises:
            BundleError: an array of another shape, or a number that makes no sense. KeyError: an array is missing.
        """
        mean, components, whiten, class_means = (arrays[name].astype(np.float64) for name in ARRAYS)
        k, d = components.shape
        shapes = mean.shape == (d,) and whiten.shape == (k, k) and class_means.shape[1:] == (k,)
        numbers = (*facts.scale, facts.threshold, facts.first_threshold or facts.threshold)
        if not shapes or not all(math.isfinite(n) and n > 0 for n in numbers):
            raise BundleError(
                f"The novelty facts of the bundle do not fit together: {k} components of {d} numbers, scale and "
                f"threshold {numbers}.",
                remedy="Train the model again.",
                code="bad_value",
            )
        return cls(
            mean, components, whiten, class_means, facts.scale, facts.threshold, facts.kept, facts.first_threshold
        )


def normalised(embedding: npt.NDArray[np.floating]) -> Floats:
    """Return the rows of (n, d) at length 1, float64; a row of zeros stays as it is."""
    rows = np.asarray(embedding, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0), np.float64)
