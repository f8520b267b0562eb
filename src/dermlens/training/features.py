"""What a frozen network computes for the views of images; needs neither TensorFlow nor one machine.

The network runs in OpenVINO, several times faster than TensorFlow on a processor. Images go through it in chunks whose
outputs do not depend on who computes them: this process (`local_engine`) or a cluster (`cluster/features.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import openvino as ov
from rich.console import Console

from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.errors import DermlensError
from dermlens.inference.runtime import batch_for, compile_graph, run_batches, shape_of
from dermlens.reporting.progress import track
from dermlens.training.views import views

CHUNK = 32  # images at a time: their views fill whole batches
DECODE_THREADS = min(8, os.cpu_count() or 2)


@dataclass(frozen=True)
class FeatureSpec:
    """Which views of an image go through the network, and which output is taken.

    Attributes:
        view_count: augmented views, beside the plain one.
        artefacts: share of the augmented views with an artefact drawn in.
        dtype: of the outputs; the network computes in float32.
    """

    input: InputSpec
    view_count: int = 0
    seed: int = 0
    artefacts: float = 0.0
    output: int = 0
    dtype: str = "float32"

    def pixels(self, record: Record, digest: str) -> np.ndarray:
        """Return all views of an image, uint8 (1 + view_count, size, size, 3); `digest` is the file's hash."""
        return views(record, self.input, count=self.view_count, seed=self.seed, key=digest, artefacts=self.artefacts)


@dataclass(frozen=True)
class Images:
    """The images of a job, in order: records and the hashes of their files, one for each."""

    records: Sequence[Record]
    hashes: Sequence[str]

    def chunk(self, start: int) -> Images:
        """Return the images from `start` to the end of its chunk."""
        stop = min(start + CHUNK, len(self.records))
        return Images(self.records[start:stop], self.hashes[start:stop])


Chunks = Generator[tuple[int, np.ndarray], None, None]
Engine = Callable[[ov.Model, Images, FeatureSpec, Sequence[int]], Chunks]
"""Gives the first image of each chunk asked for with its outputs (images, 1 + view_count, ...), in any order."""


def local_engine(graph: ov.Model, images: Images, spec: FeatureSpec, starts: Sequence[int]) -> Chunks:
    """Compute the chunks in this process, in order; the next one is decoded while one goes through the network."""
    compiled = compile_graph(graph, batch=batch_for(spec.input.size_px))
    with ThreadPoolExecutor(max_workers=DECODE_THREADS) as pool:
        waiting = [_decode(pool, images.chunk(start), spec) for start in starts[:1]]
        for place, start in enumerate(starts):
            pixels = [future.result() for future in waiting.pop()]
            waiting += [_decode(pool, images.chunk(later), spec) for later in starts[place + 1 : place + 2]]
            yield start, outputs(compiled, pixels, spec)


def _decode(pool: Executor, images: Images, spec: FeatureSpec) -> list[Future[np.ndarray]]:
    pairs = zip(images.records, images.hashes, strict=True)
    return [pool.submit(spec.pixels, record, digest) for record, digest in pairs]


def outputs(compiled: ov.CompiledModel, pixels: Sequence[np.ndarray], spec: FeatureSpec) -> np.ndarray:
    """Return the output asked for, for the views of a few images, (images, 1 + view_count, ...)."""
    flat = run_batches(compiled, np.concatenate(pixels), spec.output).astype(spec.dtype, copy=False)
    return flat.reshape(len(pixels), 1 + spec.view_count, *flat.shape[1:])


def plain_outputs(
    graph: ov.Model, images: Images, spec: FeatureSpec, *, console: Console, what: str, engine: Engine = local_engine
) -> np.ndarray:
    """Return one output of the graph for the plain view of each image, in order, in memory."""
    n = len(images.records)
    result = np.empty((n, *shape_of(graph, spec.output, batch_for(spec.input.size_px))), spec.dtype)
    done = 0
    with track(what, n, console) as advance, closing(engine(graph, images, spec, range(0, n, CHUNK))) as chunks:
        for start, part in chunks:
            result[start : start + len(part)] = part[:, 0]
            done += len(part)
            advance(len(part))
    check_complete(done, n)
    return result


def check_complete(done: int, total: int) -> None:
    """Raise where outputs are missing, since the memory reserved for them was never written."""
    if done != total:
        raise DermlensError(
            f"Features came for {done} of {total} images.",
            remedy="Run the same command again; if it happens again, report it with the output of `dermlens doctor`.",
            code="features_missing",
        )
