"""Networks with random weights that behave like trained ones, a tiny one for whole trainings, and weight files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import keras
import numpy as np

from dermlens.data.images import InputSpec
from dermlens.networks.family import backbone
from dermlens.networks.weights import fingerprint_image
from dermlens.training.network import Stem
from dermlens.training.recipe import Recipe

TINY_CHANNELS = 8


def tiny_stem(recipe: Recipe) -> Stem:
    """Stand in for `open_backbone`: four convolutions with the same weights each time, cut where the mode cuts."""

    def conv(x: keras.KerasTensor, name: str, strides: int, size: int = 3) -> keras.KerasTensor:
        start = keras.initializers.GlorotUniform(seed=len(name))
        options = {"padding": "same", "use_bias": False, "kernel_initializer": start}
        x = keras.layers.Conv2D(TINY_CHANNELS, size, strides, name=f"{name}_conv", **options)(x)
        return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.BatchNormalization(name=f"{name}_bn")(x))

    pixels = keras.Input((recipe.size_px, recipe.size_px, 3), name="pixels")
    stem = conv(keras.layers.Rescaling(1 / 64, name="rescaling")(pixels), "stem", 4)
    first = conv(stem, "block1a", 2)
    second = conv(first, "block2a", 1)
    features = conv(second, "top", 1, size=1)
    row = replace(backbone("lite0"), embedding_size=TINY_CHANNELS)
    seam = {0: stem, row.blocks: second}.get(recipe.cut_block, first)
    trunk, top = keras.Model(pixels, seam, name="lite0_trunk"), keras.Model(seam, features, name="lite0_top")
    spec = InputSpec(size_px=recipe.size_px, framing=recipe.framing)  # type: ignore[arg-type]
    return Stem(row, spec, pixels, trunk, top, "lite", f"tiny-{recipe.cut_block}", "tiny")


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
