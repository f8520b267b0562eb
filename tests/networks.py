"""Networks with random weights that behave like trained ones, and weight files laid out as Keras publishes them."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import keras
import numpy as np

from dermlens.networks.weights import fingerprint_image


def settle(model: keras.Model) -> keras.Model:
    """Give batch norms such statistics as a trained network has, so that features neither vanish nor explode."""
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    kept = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    size_px = model.input_shape[1]
    coarse = np.random.default_rng(0).uniform(0, 255, (4, 6, 6, 3)).astype(np.float32)
    smooth = [cv2.resize(one, (size_px, size_px)) for one in coarse]
    model(np.concatenate([smooth, fingerprint_image(size_px)]), training=True)
    for layer, momentum in zip(norms, kept, strict=True):
        layer.momentum = momentum
    return model


def answer(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(model(pixels, training=False))


def write_legacy_h5(model: keras.Model, path: Path) -> Path:
    """Write `.h5` weights in the layout of the published files: layer by layer, with names."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{w.name}:0" for w in layer.weights]
            group.attrs["weight_names"] = [n.encode() for n in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value
    return path
