"""The proof that weights landed where they belong: what a network answers to one fixed picture."""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from dermlens.errors import WeightsError

TOLERANCE = 2e-3
LARGEST_FEATURE = 1e4  # trained networks stay far below; weights in a wrong place often do not

# Values of the pooled feature map for `fingerprint_image` at the backbone's own size, with its published weights:
# channel -> value, where the activation leaves something to see.
KNOWN: dict[str, dict[int, float]] = {
    "lite0": {6: 0.08662, 7: 1.98874, 12: 0.26595, 13: 0.13208, 21: 0.08492, 22: 0.17193, 28: 0.77103, 29: 1.28653},
    "lite1": {7: 0.51684, 8: 0.19011, 10: 0.57207, 12: 0.08656, 20: 1.89699, 21: 1.03018, 23: 0.20014, 27: 1.24787},
    "lite2": {1: 1.30991, 2: 1.5663, 5: 0.94095, 7: 0.39474, 9: 0.14591, 11: 2.00533, 12: 0.84543, 26: 0.19054},
}


def fingerprint_image(size_px: int) -> NDArray[np.float32]:
    """Return a fixed picture made by arithmetic, float32 (1, size_px, size_px, 3), 0..255."""
    y, x, c = np.meshgrid(np.arange(size_px), np.arange(size_px), np.arange(3), indexing="ij")
    pixels = (3 * y + 5 * x + 70 * c + (x * y) // 61) % 256
    return pixels[None].astype(np.float32)


def pooled_features(model: keras.Model) -> NDArray[np.float32]:
    """Return the pooled feature map (channels,) of the fixed picture at the model's input size.

    Computed on the processor: the convolutions of a GPU round to TF32.
    """
    with keras.device("cpu:0"):
        features = model(fingerprint_image(int(model.input_shape[1])), training=False)
    return np.asarray(features, np.float32).mean(axis=(1, 2))[0]


def check_known(model: keras.Model, name: str) -> None:
    """Raise WeightsError unless `model` gives the features that backbone `name` with its official weights must give."""
    known = KNOWN[name]
    found = pooled_features(model)[list(known)]
    if not np.allclose(found, list(known.values()), rtol=0, atol=TOLERANCE):
        first = f"{np.round(found[:3], 4).tolist()}..., known are {list(known.values())[:3]}..."
        raise _refused(f"the test picture gives features {first}")


def check_same(found: NDArray[np.float32], wanted: NDArray[np.float32], source: str) -> None:
    """Raise WeightsError unless the network answers as the network did that the weights come from."""
    largest = float(np.abs(wanted).max())
    if found.shape != wanted.shape or not np.abs(found - wanted).max() <= TOLERANCE * max(largest, 1e-12):
        raise _refused(f"the test picture gives other features than in {source}")


def check_sane(model: keras.Model) -> None:
    """Raise WeightsError when the features cannot be those of a trained network: not finite, huge, or constant."""
    features = pooled_features(model)
    if not np.isfinite(features).all():
        raise _refused("the test picture gives features that are not finite")
    if np.abs(features).max() > LARGEST_FEATURE:
        raise _refused(
            f"the test picture gives a feature of {np.abs(features).max():.3g}; {LARGEST_FEATURE:g} is allowed"
        )
    if np.ptp(features) <= 1e-6 * max(1e-12, float(np.abs(features).max())):
        raise _refused("the test picture gives the same value in every channel")


def _refused(what: str) -> WeightsError:
    return WeightsError(
        f"These weights do not belong to this network: {what}.",
        remedy="Give the weights of this backbone, or choose the backbone that the weights were made for.",
        code="weights_mismatch",
    )
