"""Images -> what a frozen network says of their views: what needs neither TensorFlow nor one machine.

The network runs in OpenVINO, which is several times faster than TensorFlow on a CPU. Images go through it in chunks
whose outputs do not depend on who computes them: on this machine by `local`, or on a cluster by `ray_features.py`.

Frozen trunk features, computed once, so that fine-tuning on a CPU takes minutes.

The blocks up to the cut never change, so their output for each view of each image is computed once (`features.py`) and
kept in float16 in a memory-mapped file. A cache that was interrupted goes on where it stopped; one made from other
images, pixels, weights or seeds is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from rich.console import Console

from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.errors import DermlensError, StorageError
from dermlens.inference.runtime import batch_for, compile_graph, run_batches, shape_of
from dermlens.reporting.progress import track
from dermlens.training.views import AUGMENTATION_VERSION, plain_view, views

CHUNK = 32  # images at a time: their views fill whole batches
DECODE_THREADS = min(8, os.cpu_count() or 2)


@dataclass(frozen=True)
class Wanted:
    """Which views of an image are asked for, and which output of the graph.

    Attributes:
        view_count: augmented views, beside the plain one.
        artefacts: share of the augmented views with an artefact drawn in.
        dtype: of the outputs; the network computes in float32.
    """

    spec: InputSpec
    view_count: int
    seed: int
    artefacts: float = 0.0
    output: int = 0
    dtype: str = "float32"

    def pixels(self, record: Record, digest: str) -> np.ndarray:
        """Return all views of an image, uint8 (1 + view_count, size, size, 3); `digest` is the file's hash."""
        return views(record, self.spec, count=self.view_count, seed=self.seed, key=digest, artefacts=self.artefacts)


@dataclass(frozen=True)
class Images:
    """The images of a job, in order: records and the hashes of their files, one for each."""

    records: Sequence[Record]
    hashes: Sequence[str]

    def chunk(self, start: int) -> Images:
        """Return the images from `start` to the end of its chunk."""
        stop = min(start + CHUNK, len(self.records))
        return Images(self.records[start:stop], self.hashes[start:stop])


Found = Generator[tuple[int, np.ndarray], None, None]
Engine = Callable[[ov.Model, Images, Wanted, Sequence[int]], Found]
"""Gives the first image of each wanted chunk with its outputs (images, 1 + view_count, ...), in any order."""


def local(graph: ov.Model, images: Images, wanted: Wanted, starts: Sequence[int]) -> Found:
    """Compute the chunks in this process, in order; the next one is decoded while one goes through the network."""
    compiled = compile_graph(graph, batch=batch_for(wanted.spec.size_px))
    with ThreadPoolExecutor(max_workers=DECODE_THREADS) as pool:
        following = [decoding(pool, images.chunk(start), wanted) for start in starts[:1]]
        for place, start in enumerate(starts):
            pixels = [future.result() for future in following.pop()]
            following += [decoding(pool, images.chunk(later), wanted) for later in starts[place + 1 : place + 2]]
            yield start, outputs(compiled, pixels, wanted)


def decoding(pool: Executor, images: Images, wanted: Wanted) -> list[Future[np.ndarray]]:
    """Start to make the views of a few images."""
    pairs = zip(images.records, images.hashes, strict=True)
    return [pool.submit(wanted.pixels, record, digest) for record, digest in pairs]


def outputs(compiled: ov.CompiledModel, pixels: Sequence[np.ndarray], wanted: Wanted) -> np.ndarray:
    """Return the wanted output for the views of a few images, (images, 1 + view_count, ...)."""
    found = run_batches(compiled, np.concatenate(pixels), wanted.output).astype(wanted.dtype, copy=False)
    return found.reshape(len(pixels), 1 + wanted.view_count, *found.shape[1:])


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
    engine: Engine = local,
) -> np.ndarray:
    """Return features float16 (images, 1 + view_count, height, width, channels), read-only; view 0 is the plain one.

    Args:
        folder: holds `features.npy` and `features.json`.
        graph: the trunk, uint8 pixels in, one feature map out.
        weights_id: identifies the trunk's weights and cut.
        artefacts: share of the augmented views with an artefact drawn in.
        engine: who computes; either one goes on with what the other has left.
    Raises:
        StorageError: not enough space; what is there already is kept.
    """
    wanted = Wanted(spec, view_count, seed, artefacts, dtype="float16")
    shape = (len(records), 1 + view_count, *shape_of(graph, wanted.output, batch_for(spec.size_px)))
    key = {
        "images": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "aspects": hashlib.sha256(repr([r.frame_aspect for r in records]).encode()).hexdigest(),
        "input": spec.fingerprint(),
        "trunk": weights_id,
        "augmentation": AUGMENTATION_VERSION,
        "views": view_count,
        "seed": seed,
        "shape": list(shape),
        "artefacts": artefacts,
    }

    try:
        features, done = _open(folder, key, shape)
        if starts := range(done, len(records), CHUNK):
            with track(what, (len(records) - done) * shape[1], console, unit="views") as advance:
                _fill(folder, features, done, key, engine(graph, Images(records, hashes), wanted, starts), advance)
        del features
        filled: np.ndarray = np.load(folder / "features.npy", mmap_mode="r")
        return filled
    except OSError as error:
        raise StorageError(
            f"The feature cache could not be written to {folder}: {error.strerror or error}.",
            remedy="Free some space or lower `views` in the recipe; the run continues from what is there.",
        ) from error


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
    found: Found,
    progress: Callable[[int], None],
) -> None:
    """Write chunks as they come and note, also at an interruption, how far there is no gap."""
    written, kept = dict[int, int](), done
    try:
        for start, part in found:
            features[start : start + len(part)] = part
            written[start] = start + len(part)
            while done in written:
                done = written.pop(done)
            progress(part.shape[0] * part.shape[1])
            if done - kept >= FLUSH_EVERY:
                kept = _note(folder, features, key, done)
    finally:
        found.close()
        _note(folder, features, key, done)
    _check_that_all_came(done, len(features))


def _check_that_all_came(done: int, wanted: int) -> None:
    """Refuse to go on with memory that nobody has written to."""
    if done != wanted:
        raise DermlensError(
            f"Features came for {done} of {wanted} images.",
            remedy="Run the same command again; if it stays so, report it with the output of `dermlens doctor`.",
            code="features_missing",
        )


def _note(folder: Path, features: np.ndarray, key: dict[str, Any], done: int) -> int:
    features.flush()  # type: ignore[attr-defined]
    _write_state(folder, key, done)
    return done


def _write_state(folder: Path, key: dict[str, Any], done: int) -> None:
    temporary = folder / ".features.json"
    temporary.write_text(json.dumps({"key": key, "done": done}), encoding="utf-8")
    temporary.replace(folder / "features.json")


def frozen_outputs(
    graph: ov.Model, images: Images, wanted: Wanted, *, engine: Engine, console: Console, what: str
) -> np.ndarray:
    """Return one output of the graph for the plain view of each image, in order, kept in memory."""
    n = len(images.records)
    result = np.empty((n, *shape_of(graph, wanted.output, batch_for(wanted.spec.size_px))), wanted.dtype)
    done = 0
    with track(what, n, console) as advance, closing(engine(graph, images, wanted, range(0, n, CHUNK))) as found:
        for start, part in found:
            result[start : start + len(part)] = part[:, 0]
            done += len(part)
            advance(len(part))
    _check_that_all_came(done, n)
    return result


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
