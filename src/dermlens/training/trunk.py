"""Frozen trunk features, computed once, so that fine-tuning on a CPU takes minutes.

The blocks up to the cut never change, so their output for each view of each image is computed once (in OpenVINO, which
is several times faster than TensorFlow on a CPU) and kept in float16 in a memory-mapped file. A cache that was
interrupted goes on where it stopped; one made from other images, pixels, weights or seeds is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from rich.console import Console

from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.errors import StorageError
from dermlens.reporting.progress import track
from dermlens.training.export import compile_graph
from dermlens.training.pipeline import AUGMENTATION_VERSION, plain_view, views

BATCH = 32  # of images of 224 px; fewer of larger ones
DECODE_THREADS = min(8, os.cpu_count() or 2)
CHUNK = 32  # images at a time: their views fill whole batches
FLUSH_EVERY = 256


def trunk_cache(
    folder: Path,
    graph: ov.Model,
    records: Sequence[Record],
    hashes: Sequence[str],
    spec: InputSpec,
    *,
    view_count: int,
    seed: int,
    weights_id: str,
    console: Console,
    artefacts: float = 0.0,
    what: str = "Trunk features",
) -> np.ndarray:
    """Return features float16 (images, 1 + view_count, height, width, channels), read-only; view 0 is the plain one.

    Args:
        folder: holds `features.npy` and `features.json`.
        graph: the trunk, uint8 pixels in, one feature map out.
        weights_id: identifies the trunk's weights and cut.
        artefacts: share of the augmented views with an artefact drawn in.
    Raises:
        StorageError: not enough space; what is there already is kept.
    """
    compiled = compile_graph(graph, batch=batch_for(spec.size_px))
    shape = (len(records), 1 + view_count, *(int(n) for n in compiled.output(0).shape[1:]))
    key = {
        "images": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "aspects": hashlib.sha256(repr([r.frame_aspect for r in records]).encode()).hexdigest(),
        "input": spec.fingerprint(),
        "trunk": weights_id,
        "augmentation": AUGMENTATION_VERSION,
        "views": view_count,
        "seed": seed,
        "shape": list(shape),
        **({"artefacts": artefacts} if artefacts else {}),  # without them a cache from before they existed holds
    }

    def load(index: int) -> np.ndarray:
        return views(records[index], spec, count=view_count, seed=seed, key=hashes[index], artefacts=artefacts)

    try:
        features, done = _open(folder, key, shape)
        _fill(folder, features, done, key, compiled, load, console, what)
        del features
        filled: np.ndarray = np.load(folder / "features.npy", mmap_mode="r")
        return filled
    except OSError as error:
        raise StorageError(
            f"The feature cache could not be written to {folder}: {error.strerror or error}.",
            remedy="Free some space or lower `views` in the recipe; the run continues from what is there.",
        ) from error


def batch_for(size_px: int) -> int:
    """Return how many images of that side go through a graph at once: about as many pixels whatever the size."""
    return max(1, min(BATCH, BATCH * 224**2 // size_px**2))


def _open(folder: Path, key: dict[str, Any], shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    folder.mkdir(parents=True, exist_ok=True)
    data_path = folder / "features.npy"
    done = _done(folder, key)
    if done and data_path.exists():
        features = np.load(data_path, mmap_mode="r+")
        if features.shape == shape and features.dtype == np.float16:
            return features, done
    _write_state(folder, key, 0)  # first, so that no older state can vouch for the new file
    data_path.unlink(missing_ok=True)
    need = 2 * int(np.prod(shape))
    free = shutil.disk_usage(folder).free
    if need * 1.05 > free:
        raise StorageError(
            f"The feature cache needs {need / 1e9:.1f} GB in {folder}; {free / 1e9:.1f} GB are free.",
            remedy="Free some space, lower `views` in the recipe or choose another --out.",
        )
    features = np.lib.format.open_memmap(data_path, mode="w+", dtype=np.float16, shape=shape)
    if hasattr(os, "posix_fallocate"):  # take the space now: a mapped file on a disk that fills up kills the process
        with data_path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, data_path.stat().st_size)
    return features, 0


def _done(folder: Path, key: dict[str, Any]) -> int:
    """Return how many images of exactly this cache are finished."""
    try:
        state = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        return int(state["done"]) if state["key"] == key else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _fill(
    folder: Path,
    features: np.ndarray,
    done: int,
    key: dict[str, Any],
    compiled: ov.CompiledModel,
    load: Callable[[int], np.ndarray],
    console: Console,
    what: str,
) -> None:
    """Fill the features from image `done` on; `load` gives all views of an image."""
    n, per_image = features.shape[:2]
    total = (n - done) * per_image
    starts = range(done, n, CHUNK)
    with ThreadPoolExecutor(max_workers=DECODE_THREADS) as pool, track(what, total, console, unit="views") as advance:
        following = [pool.submit(load, i) for i in _chunk(done, n)]
        for start in starts:
            pixels = [future.result() for future in following]
            following = [pool.submit(load, i) for i in _chunk(start + CHUNK, n)]
            found = run_batches(compiled, np.concatenate(pixels))
            stop = start + len(pixels)
            features[start:stop] = found.reshape(len(pixels), per_image, *found.shape[1:])
            advance(len(found))
            if stop == n or stop % FLUSH_EVERY < CHUNK:
                features.flush()  # type: ignore[attr-defined]
                _write_state(folder, key, stop)


def _chunk(start: int, stop: int) -> range:
    return range(min(start, stop), min(start + CHUNK, stop))


def _write_state(folder: Path, key: dict[str, Any], done: int) -> None:
    temporary = folder / ".features.json"
    temporary.write_text(json.dumps({"key": key, "done": done}), encoding="utf-8")
    temporary.replace(folder / "features.json")


def run_batches(compiled: ov.CompiledModel, pixels: np.ndarray, output: int = 0) -> np.ndarray:
    """Run uint8 pixels (n, h, w, 3) through a graph of fixed batch, padding the last one; returns output (n, ...)."""
    batch = int(compiled.input(0).shape[0])
    parts = []
    for start in range(0, len(pixels), batch):
        part = pixels[start : start + batch]
        n = len(part)
        if n < batch:
            part = np.concatenate([part, np.zeros((batch - n, *part.shape[1:]), part.dtype)])
        parts.append(compiled(np.ascontiguousarray(part), share_inputs=True)[output][:n].copy())
    return np.concatenate(parts)


def plain_outputs(
    compiled: ov.CompiledModel,
    records: Sequence[Record],
    spec: InputSpec,
    *,
    output: int,
    console: Console,
    what: str,
) -> np.ndarray:
    """Run the plain view of each record and return one output of the graph for all, in order."""
    batch = int(compiled.input(0).shape[0])
    parts = []
    with ThreadPoolExecutor(max_workers=DECODE_THREADS) as pool, track(what, len(records), console) as advance:
        for start in range(0, len(records), batch):
            part = records[start : start + batch]
            pixels = np.stack(list(pool.map(lambda record: plain_view(record, spec), part)))
            parts.append(run_batches(compiled, pixels, output))
            advance(len(part))
    return np.concatenate(parts)
