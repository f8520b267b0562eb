"""Images -> what a frozen network says of their views: what needs neither TensorFlow nor one machine.

The network runs in OpenVINO, which is several times faster than TensorFlow on a CPU. Images go through it in chunks
whose outputs do not depend on who computes them: on this machine by `local`, or on a cluster by `ray_features.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import openvino as ov

from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.training.pipeline import views

BATCH = 32  # of images of 224 px; fewer of larger ones
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


def shape_of(graph: ov.Model, output: int, batch: int) -> tuple[int, ...]:
    """Return the shape of an output for one image."""
    return tuple(int(n) for n in with_batch(graph, batch).output(output).shape[1:])


def batch_for(size_px: int) -> int:
    """Return how many images of that side go through a graph at once: about as many pixels whatever the size."""
    return max(1, min(BATCH, BATCH * 224**2 // size_px**2))


def with_batch(graph: ov.Model, batch: int) -> ov.Model:
    """Return a copy of the graph for a fixed batch."""
    fixed = graph.clone()
    shape = fixed.input(0).get_partial_shape()
    shape[0] = batch
    fixed.reshape(shape)
    return fixed


def compile_graph(graph: ov.Model, *, batch: int, threads: int | None = None) -> ov.CompiledModel:
    """Compile for a fixed batch in float32, on all cores or on `threads`."""
    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    return ov.Core().compile_model(with_batch(graph, batch), "CPU", config)


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
