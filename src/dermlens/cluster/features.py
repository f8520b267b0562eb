"""The same features on Ray: actors of one core, each with one compiled network, and no TensorFlow.

A worker gets the names of a chunk's images and returns their outputs through the object store, so that only the
driver's machine holds the cache. A worker reads images by itself; a node that does not see them gets their bytes too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov

from dermlens.cluster.crew import (
    OBJECT_STORE_BYTES,
    TRIES,
    WAITING_A_WORKER,
    Crew,
    WorkerDied,
    cluster_cores,
    connected,
    fetch,
    share,
)
from dermlens.data.records import Record
from dermlens.errors import DermlensError, ImageError, os_errors
from dermlens.inference.runtime import batch_for, compile_graph, read_graph, shape_of
from dermlens.training.features import CHUNK, DECODE_THREADS, Chunks, Engine, FeatureSpec, Images, outputs


def ray_features(address: str | None = None, workers: int | None = None) -> Engine:
    """Return the engine.

    Args:
        address: of a running cluster ("auto", "host:6379"); a local one is started when None.
        workers: actors of one core; as many as the cluster has cores by default. Every node must have dermlens with
            the extra `scale`, and should reach the images under the same names.
    """

    def run(graph: ov.Model, images: Images, spec: FeatureSpec, starts: Sequence[int]) -> Chunks:
        one = int(np.prod(shape_of(graph, spec.output, 1)))
        chunk_bytes = np.dtype(spec.dtype).itemsize * one * CHUNK * (1 + spec.view_count)
        at_once = (workers or os.cpu_count() or 1) * (1 + WAITING_A_WORKER)
        with connected(address, workers, OBJECT_STORE_BYTES + at_once * chunk_bytes):
            cores = cluster_cores()
            crew = Crew(_Worker, (spec, *_witness(images)), min(workers or cores, cores))
            shared = share(_to_bytes(graph))
            units = ((shared, start, _with_absolute_names(images.chunk(start)), None) for start in starts)
            with closing(crew.run(units)) as results:
                for item in results:
                    if item is None:
                        continue
                    (_, start, chunk, _), array = item
                    if isinstance(array, WorkerDied):
                        raise _killer(chunk)
                    if array is None:  # the node does not see the images
                        crew.add((shared, start, chunk, _bytes_of(chunk)))
                    else:
                        yield start, array

    return run


def _witness(images: Images) -> tuple[str, int]:
    """Return a file by which a node can tell whether it sees the images: absolute name and size in bytes."""
    path = os.path.abspath(images.records[0].path)
    return path, os.path.getsize(path) if os.path.isfile(path) else 0


class _Worker:
    """One core, one compiled network."""

    def __init__(self, spec: FeatureSpec, witness: str, witness_bytes: int) -> None:
        cv2.setNumThreads(1)
        self._spec, self._compiled = spec, None
        self._sees = os.path.isfile(witness) and os.path.getsize(witness) == witness_bytes

    def answer(self, shared: list[Any], start: int, images: Images, files: list[bytes] | None) -> np.ndarray | None:
        """Return the outputs of a chunk, (images, 1 + view_count, ...), or None: this node does not see the images.

        Args:
            shared: reference to the graph.
            files: the images' bytes, for a node that does not see them.
        """
        if files is None and not self._sees:
            return None
        compiled = self._compiled = self._compiled or self._load(fetch(shared))
        with tempfile.TemporaryDirectory(prefix="dermlens-chunk-") as place:
            here = images if files is None else _write_files(images, files, Path(place))
            pixels = [self._spec.pixels(r, h) for r, h in zip(here.records, here.hashes, strict=True)]
        return outputs(compiled, pixels, self._spec)

    def _load(self, files: tuple[bytes, bytes]) -> ov.CompiledModel:
        graph = read_graph(files[0], files[1])
        return compile_graph(graph, batch=batch_for(self._spec.input.size_px), threads=1)


def _with_absolute_names(images: Images) -> Images:
    """Give the images names that hold in another working folder."""
    return Images([replace(r, path=Path(os.path.abspath(r.path))) for r in images.records], images.hashes)


def _write_files(images: Images, files: Sequence[bytes], place: Path) -> Images:
    """Write the bytes to files of this node and return the images with their names there."""
    records = []
    for index, (record, data) in enumerate(zip(images.records, files, strict=True)):
        path = place / f"{index}{Path(record.path).suffix}"
        path.write_bytes(data)
        records.append(replace(record, path=path))
    return Images(records, images.hashes)


def _bytes_of(images: Images) -> list[bytes]:
    with ThreadPoolExecutor(max_workers=DECODE_THREADS) as pool:
        return list(pool.map(_read, images.records))


def _read(record: Record) -> bytes:
    remedy = "Bring it back, or leave it out of the data set."
    with os_errors(f"{record.path} cannot be read", remedy, ImageError, "unreadable"):
        return Path(record.path).read_bytes()


def _to_bytes(graph: ov.Model) -> tuple[bytes, bytes]:
    """Return the graph as XML and weights, all of it float32."""
    with tempfile.TemporaryDirectory(prefix="dermlens-trunk-") as place:
        path = Path(place, "trunk.xml")
        ov.save_model(graph, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _killer(images: Images) -> DermlensError:
    first, last = images.records[0].path, images.records[-1].path
    return DermlensError(
        f"The {len(images.records)} images from {str(first)!r} to {str(last)!r} ended their worker {TRIES + 1} times.",
        remedy="Give the workers more memory, or find the file with `dermlens audit`; then add --resume to continue.",
        code="worker_died",
    )
