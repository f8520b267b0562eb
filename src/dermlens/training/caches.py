"""What a run folder keeps because it took long: decoded images, trunk features, and embeddings with the linear probe.

Each cache has a key over everything it was computed from. One with another key is computed again; one that was
interrupted is continued. Large arrays are mapped from a file, and the small file that vouches for them is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from rich.console import Console

from dermlens.data.images import InputSpec
from dermlens.errors import os_errors
from dermlens.files import atomic_file, write_text
from dermlens.inference.runtime import batch_for, shape_of
from dermlens.reporting.progress import track
from dermlens.training.features import CHUNK, Chunks, Engine, FeatureSpec, Images, check_complete, local_engine
from dermlens.training.probe import Probe
from dermlens.training.views import AUGMENTATION_VERSION, larger, larger_copy

PIXELS_SHARE, FEATURES_SHARE = 0.5, 0.95  # of the free space that a cache may take; images can be decoded again
FLUSH_EVERY = 256
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


def save_arrays(path: Path, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Replace an `.npz` of arrays with a JSON head. Raises OSError; an older file is unchanged."""
    with atomic_file(path) as temporary:
        np.savez(temporary, head=np.array(json.dumps(head)), **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return head and arrays of an `.npz`; raises one of `UNREADABLE`."""
    with np.load(path, allow_pickle=False) as file:
        return dict(json.loads(str(file["head"]))), {name: file[name] for name in sorted(set(file.files) - {"head"})}


def cached_probe(
    path: Path, key: str, compute: Callable[[], tuple[np.ndarray, Probe]], console: Console
) -> tuple[np.ndarray, Probe]:
    """Return embeddings, float32 (n, d), and the probe fitted on them: from `path` where its key is the same."""
    try:
        head, arrays = load_arrays(path)
        if head.pop("key") == key:
            return arrays.pop("embeddings"), Probe(**{**arrays, **head})
    except UNREADABLE:
        pass
    embeddings, probe = compute()
    head, arrays = probe.parts()
    try:
        save_arrays(path, {"key": key, **head}, {"embeddings": embeddings, **arrays})
    except OSError as error:
        console.print(f"Warning: {path} was not saved: {error.strerror or error}.", style="yellow")
    return embeddings, probe


def pixel_cache(folder: Path, images: Images, spec: InputSpec, console: Console) -> Callable[[int], np.ndarray]:
    """Return row -> `larger_copy` of that image, uint8 (side, side, 3), decoded at the first call only.

    A training on fresh views draws each image some ten times, and decoding takes longer than augmenting. Several
    threads may call the function. A checksum for each row shows which were written whole. Without the space, or in a
    folder that is not writable, each call decodes, and `console` says so.
    """

    def decode(row: int) -> np.ndarray:
        return larger_copy(images.records[row], spec)

    facts = (list(images.hashes), [r.frame_aspect for r in images.records], larger(spec).fingerprint())
    side = larger(spec).size_px
    try:
        pixels, sums = _open_pixels(folder, _digest(repr(facts)), (len(images.records), side, side, 3))
    except OSError as error:
        console.print(f"Images are decoded again in every epoch: {error.strerror or error}.", soft_wrap=True)
        return decode
    checked = np.zeros(len(images.records), bool)

    def load(row: int) -> np.ndarray:
        if not checked[row]:
            if sums[row] != zlib.crc32(pixels[row]):
                pixels[row] = decode(row)
                sums[row] = zlib.crc32(pixels[row])
            checked[row] = True
        return np.asarray(pixels[row])

    return load


def _open_pixels(folder: Path, key: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return mapped pixels and the checksum of each row, uint32 (n,), 0 where nothing was written. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    data, checks, note = folder / "pixels.npy", folder / "sums.npy", folder / "pixels.json"
    if _read_note(note).get("key") == key:
        try:
            return np.load(data, mmap_mode="r+"), np.load(checks, mmap_mode="r+")
        except UNREADABLE:
            pass
    note.unlink(missing_ok=True)  # first, so that no older key vouches for the new file
    data.unlink(missing_ok=True)
    sums = np.lib.format.open_memmap(checks, mode="w+", dtype=np.uint32, shape=shape[:1])
    pixels = _new_array(data, shape, np.uint8, PIXELS_SHARE)
    write_text(note, json.dumps({"key": key}))
    return pixels, sums


def trunk_cache(
    folder: Path,
    graph: ov.Model,
    images: Images,
    spec: FeatureSpec,
    *,
    weights_id: str,
    console: Console,
    what: str = "Trunk features",
    engine: Engine = local_engine,
) -> np.ndarray:
    """Return features float16 (images, 1 + view_count, height, width, channels), read-only; view 0 is the plain one.

    The blocks below the cut never change, so their output for each view is computed once, and fine-tuning on a
    processor takes minutes.

    Args:
        folder: holds `features.npy` and `features.json`.
        graph: the trunk, uint8 pixels in, one feature map out.
        weights_id: identifies the trunk's weights and cut.
        engine: computes; each one continues what another has left.
    Raises:
        StorageError: not enough space; finished features stay.
    """
    shape = (len(images.records), 1 + spec.view_count, *shape_of(graph, spec.output, batch_for(spec.input.size_px)))
    key = {
        "images": _digest("".join(images.hashes)),
        "aspects": _digest(repr([r.frame_aspect for r in images.records])),
        "input": spec.input.fingerprint(),
        "trunk": weights_id,
        "augmentation": AUGMENTATION_VERSION,
        "views": spec.view_count,
        "seed": spec.seed,
        "artefacts": spec.artefacts,
        "shape": list(shape),
    }
    with os_errors(
        f"The feature cache could not be written to {folder}",
        "Free some space, lower `views` in the recipe or choose another --out; what is finished stays.",
    ):
        features, done = _open_features(folder, key, shape)
        if starts := range(done, len(images.records), CHUNK):
            with track(what, (len(images.records) - done) * shape[1], console, unit="views") as advance:
                _fill(folder, features, done, key, engine(graph, images, spec, starts), advance)
        del features
        filled: np.ndarray = np.load(folder / "features.npy", mmap_mode="r")
        return filled


def _open_features(folder: Path, key: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Return mapped features and how many images of exactly this cache are finished. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    data, note = folder / "features.npy", _read_note(folder / "features.json")
    if note.get("key") == key and note.get("done") and data.exists():
        features = np.load(data, mmap_mode="r+")
        if features.shape == shape and features.dtype == np.float16:
            return features, int(note["done"])
    _note_done(folder, key, 0)  # first, so that no older note vouches for the new file
    data.unlink(missing_ok=True)
    return _new_array(data, shape, np.float16, FEATURES_SHARE), 0


def _fill(
    folder: Path,
    features: np.ndarray,
    done: int,
    key: Mapping[str, Any],
    chunks: Chunks,
    progress: Callable[[int], None],
) -> None:
    """Write chunks in any order and note, also when interrupted, how many images there are without a gap."""
    ends, noted = dict[int, int](), done
    try:
        for start, part in chunks:
            features[start : start + len(part)] = part
            ends[start] = start + len(part)
            while done in ends:
                done = ends.pop(done)
            progress(part.shape[0] * part.shape[1])
            if done - noted >= FLUSH_EVERY:
                noted = done
                features.flush()  # type: ignore[attr-defined]
                _note_done(folder, key, done)
    finally:
        chunks.close()
        features.flush()  # type: ignore[attr-defined]
        _note_done(folder, key, done)
    check_complete(done, len(features))


def _note_done(folder: Path, key: Mapping[str, Any], done: int) -> None:
    write_text(folder / "features.json", json.dumps({"key": key, "done": done}))


def _read_note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return note if isinstance(note, dict) else {}
    except (OSError, ValueError):
        return {}


def _new_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic], share_of_free: float) -> np.ndarray:
    """Return a new mapped array. Raises OSError where it would take more than that share of the free space."""
    need, free = np.dtype(dtype).itemsize * int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if need > share_of_free * free:
        raise OSError(f"{path.name} needs {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # take the space now: a mapped file on a disk that fills up kills the process
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
