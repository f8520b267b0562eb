"""Weights into a Keras network: every array is used exactly once and fits, or nothing is changed; then it is proved.

They come from a torch state dict (Lite) or from Keras's own files: `.h5` as published, `.weights.h5`, whole `.keras`
models. Keras's EfficientNet B has two graphs: the one of `weights="imagenet"` has one more Rescaling by 1 / sqrt(std)
behind the normalisation. Weights move between the two without an error and answer differently, so a file's weights go
only into the graph that they belong to. The proof is what the network answers to one fixed picture.
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
from numpy.typing import NDArray

from dermlens.errors import WeightsError
from dermlens.networks.backend import leaves
from dermlens.networks.weight_files import Array, check_weights_size

# --- from torch names and axes to Keras ------------------------------------------------------------------------

_BATCH_NORM_LEAVES = ("weight", "bias", "running_mean", "running_var")
_CLASSIFIER_LEAVES = ("_fc.weight", "_fc.bias")


def load_lite_weights(model: keras.Model, tensors: Mapping[str, Array]) -> None:
    """Pour the tensors of a torch EfficientNet-Lite state dict into `model`, built by `lite.build_lite`.

    Every tensor is used exactly once (the ImageNet classifier is known and set aside, the batch counters too).

    Raises:
        WeightsError: a tensor is missing, left over or of another shape; both shapes are named.
    """
    used = set(_CLASSIFIER_LEAVES)
    block = -1
    ready: list[tuple[keras.layers.Layer, list[Array]]] = []
    previous = ""
    for layer in model.layers:
        if not layer.weights:
            continue
        prefix, _, _part = layer.name.partition("_")
        if prefix.startswith("block") and prefix != previous:
            block += 1
        previous = prefix
        leaf = _torch_leaf(layer, block)
        names = _leaf_names(layer, leaf)
        values = [_take(tensors, name, used) for name in names]
        ready.append((layer, _to_keras_axes(layer, values, names)))
        used.add(f"{leaf}.num_batches_tracked")
    left = sorted(set(tensors) - used)
    if left:
        raise mismatch(f"tensor {left[0]} {tensors[left[0]].shape} ({len(left)} in all) has no place in {model.name}")
    for layer, values in ready:
        layer.set_weights(values)


def _torch_leaf(layer: keras.layers.Layer, block: int) -> str:
    prefix, _, part = layer.name.partition("_")
    if prefix == "stem":
        return {"conv": "_conv_stem", "bn": "_bn0"}[part]
    if prefix == "top":
        return {"conv": "_conv_head", "bn": "_bn1"}[part]
    leaf = {
        "expand_conv": "_expand_conv",
        "expand_bn": "_bn0",
        "dwconv": "_depthwise_conv",
        "bn": "_bn1",
        "project_conv": "_project_conv",
        "project_bn": "_bn2",
    }[part]
    return f"_blocks.{block}.{leaf}"


def _leaf_names(layer: keras.layers.Layer, leaf: str) -> list[str]:
    leaves = _BATCH_NORM_LEAVES if isinstance(layer, keras.layers.BatchNormalization) else ("weight",)
    return [f"{leaf}.{name}" for name in leaves]


def _take(tensors: Mapping[str, Array], name: str, used: set[str]) -> Array:
    if name not in tensors:
        raise mismatch(f"tensor {name} is missing")
    if name in used:
        raise mismatch(f"tensor {name} is wanted twice")
    used.add(name)
    return tensors[name]


def _to_keras_axes(layer: keras.layers.Layer, values: list[Array], names: list[str]) -> list[Array]:
    """Turn torch's (out, in, h, w) into Keras's (h, w, in, out), or (h, w, channel, 1) for a depthwise kernel."""
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        values = [v.transpose(2, 3, 0, 1) if v.ndim == 4 else v for v in values]
    elif isinstance(layer, keras.layers.Conv2D):
        values = [v.transpose(2, 3, 1, 0) if v.ndim == 4 else v for v in values]
    for value, weight, name in zip(values, layer.weights, names, strict=True):
        check_leaf(name, tuple(value.shape), tuple(weight.shape), value)
    return values


def check_leaf(name: str, found: tuple[int, ...], wanted: tuple[int, ...], value: Array) -> None:
    """Raise WeightsError unless the shapes agree and every value is finite."""
    if found != wanted:
        raise mismatch(f"tensor {name} has shape {found} (Keras axes), the network needs {wanted}")
    if not np.isfinite(value).all():
        raise mismatch(f"tensor {name} holds values that are not finite")


# --- by name -----------------------------------------------------------------------------------------------------


def load_named_weights(model: keras.Model, values: Mapping[str, list[Array]], *, ignore: tuple[str, ...] = ()) -> None:
    """Give every layer of `model` the arrays stored under its name; nothing may be missing, left over or misshapen.

    Args:
        model: the network; layers without weights are passed over.
        values: layer name -> arrays in the order of `layer.weights`.
        ignore: layer names in `values` that may be left over (an ImageNet classifier).

    Raises:
        WeightsError: names the layer and both shapes.
    """
    ready: list[tuple[keras.layers.Layer, list[Array]]] = []
    for layer in model.layers:
        targets = layer.weights
        if not targets:
            continue
        arrays = values.get(layer.name, [])
        if len(arrays) != len(targets):
            raise mismatch(f"layer {layer.name} has {len(arrays)} arrays in the file, the network needs {len(targets)}")
        for array, target in zip(arrays, targets, strict=True):
            check_leaf(f"{layer.name}/{target.name}", tuple(array.shape), tuple(target.shape), array)
        ready.append((layer, arrays))
    known = {layer.name for layer, _ in ready} | set(ignore)
    left = sorted(name for name, arrays in values.items() if arrays and name not in known)
    if left:
        raise mismatch(f"layer {left[0]} ({len(left)} in all) has no place in {model.name}")
    for layer, arrays in ready:
        set_layer(layer, arrays)


def set_layer(layer: keras.layers.Layer, arrays: list[Array]) -> None:
    """Set the weights of one layer so that they act.

    A Normalization keeps working copies of its mean and variance, which `set_weights` alone leaves as they were.
    """
    layer.set_weights(arrays)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()


# --- from Keras's own files --------------------------------------------------------------------------------------


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


def pixel_scaling(model: keras.Model) -> list[tuple[float, ...]]:
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


# --- the proof ---------------------------------------------------------------------------------------------------


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


def mismatch(what: str) -> WeightsError:
    """Return the error for weights of another network."""
    return WeightsError(
        f"These weights do not belong to this network: {what}.",
        remedy="Give the weights of this backbone, or choose the backbone that the weights were made for.",
        code="weights_mismatch",
    )
