"""Weights out of Keras's own files: `.h5` as published, `.weights.h5`, and whole `.keras` models.

Each comes with the scaling of the graph that it was made in. Keras's EfficientNet B has two graphs: the one of
`weights="imagenet"` has one more Rescaling by 1 / sqrt(std) behind the normalisation. Weights move between the two
without an error and answer differently, so a file is poured only into the graph that it belongs to.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from dermlens.errors import WeightsError
from dermlens.training.device import leaves
from dermlens.training.pretrained import mismatch
from dermlens.training.torch_legacy import Array, check_weights_size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Values = dict[str, list[Array]]


def read_h5(path: Path, model: keras.Model) -> Values:
    """Read a Keras weight file with names, `.h5` or `.weights.h5`: layer name -> arrays in order.

    Args:
        model: the network that the weights are for; its order of layers tells the names where the file has none.

    Raises:
        WeightsError: the file cannot be read or has another layout.
    """
    check_weights_size(path)
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            return _legacy(root) if "layer_names" in root.attrs else _by_group(file, model)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"The weight file {path} is damaged or no Keras weight file: {error}.",
            remedy="Give the file as Keras publishes it (for example efficientnetb0_notop.h5) or a whole .keras model.",
            code="weights_damaged",
        ) from error


def _legacy(root: Any) -> Values:
    return {
        canonical_name(_text(layer)): [
            np.asarray(root[_text(layer)][_text(w)]) for w in root[_text(layer)].attrs["weight_names"]
        ]
        for layer in root.attrs["layer_names"]
    }


def _by_group(file: Any, model: keras.Model) -> Values:
    """Read Keras 3's layout: groups named by kind of layer and number, with the layer's name in newer files."""
    found: Values = {}
    by_kind = _names_by_kind(model)

    def visit(path: str, item: Any) -> None:
        if not isinstance(item, h5py.Group) or not path.endswith("vars") or not len(item):
            return
        kind = path.removesuffix("/vars").rsplit("/", 1)[-1]
        if "optimizer" in path.split("/"):
            return
        name = _text(item.attrs["name"]) if "name" in item.attrs else by_kind.get(kind, kind)
        found[canonical_name(name)] = [np.asarray(item[key]) for key in sorted(item, key=int)]

    file.visititems(visit)
    if not found:
        raise ValueError("it holds no named layers")
    return found


def _names_by_kind(model: keras.Model) -> dict[str, str]:
    """Return group name -> layer name, as Keras counts layers of one class: conv2d, conv2d_1, ..."""
    counts: dict[str, int] = {}
    names = {}
    for layer in model.layers:
        kind = keras.src.utils.naming.to_snake_case(type(layer).__name__)
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        names[f"{kind}_{number}" if number else kind] = layer.name
    return names


def canonical_name(layer: str) -> str:
    """Return `normalization` for `normalization_7`: Keras numbers unnamed layers by the process, not by the network."""
    return "normalization" if re.fullmatch(r"normalization(_\d+)?", layer) else layer


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def made_for_imagenet_graph(values: Mapping[str, list[Array]]) -> bool:
    """Tell from the stored normalisation which of Keras's two EfficientNet B graphs the weights were made in.

    Returns:
        True for the graph with the extra Rescaling (official files: ImageNet mean, and the standard deviation in the
        place of the variance), False for the plain graph (`weights=None`, never adapted: mean 0, variance 1).

    Raises:
        WeightsError: neither, so the right graph cannot be known.
    """
    stored = values.get("normalization", [])
    if len(stored) >= 2:
        mean, variance = np.ravel(stored[0]), np.ravel(stored[1])
        if mean.shape == variance.shape == (3,):
            if np.allclose(mean, IMAGENET_MEAN, atol=1e-3) and np.allclose(variance, IMAGENET_STD, atol=1e-3):
                return True
            if np.allclose(mean, 0) and np.allclose(variance, 1):
                return False
    raise mismatch("its normalisation is neither ImageNet's nor the untouched one; a whole .keras model would tell")


def read_keras(path: Path) -> keras.Model:
    """Open a whole `.keras` model.

    Raises:
        WeightsError: the file cannot be read as a Keras model without running code of its own.
    """
    check_weights_size(path)
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, ImportError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise WeightsError(
            f"The model file {path} is damaged or no .keras model: {reason}.",
            remedy="Give the .keras file from the run folder of dermlens train.",
            code="weights_damaged",
        ) from error


def layer_values(model: keras.Model) -> Values:
    """Return layer name -> arrays of every layer with weights, nested models opened."""
    return {canonical_name(layer.name): layer.get_weights() for layer in leaves(model) if layer.weights}


def scaling(model: keras.Model) -> list[tuple[float, ...]]:
    """Return what a model does to its pixels before the first convolution: its constant scalings, rounded, in order."""
    found = []
    for layer in leaves(model):
        if isinstance(layer, keras.layers.Rescaling):
            found.append(tuple(np.round(np.ravel([*np.ravel(layer.scale), *np.ravel(layer.offset)]), 6).tolist()))
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is not None:
            found.append(tuple(np.round([*np.ravel(layer.input_mean), *np.ravel(layer.input_variance)], 6).tolist()))
    return found


def feature_map_of(model: keras.Model, channels: int) -> keras.Model | None:
    """Return a model from pixels to its feature map (n, h, w, channels); None where that is no output of `model`."""
    maps = [output for output in model.outputs if len(output.shape) == 4 and output.shape[-1] == channels]
    square = len(model.inputs) == 1 and len(model.input_shape) == 4 and model.input_shape[1] == model.input_shape[2]
    return keras.Model(model.inputs[0], maps[-1]) if maps and square and model.input_shape[1] else None
