"""The one place that compiles and runs OpenVINO graphs.

`Runtime` is the session of a bundle: pixels -> logits, embedding and feature map in one pass. `compile_graph` and
`run_batches` are for any other graph: a part of a network, an export to check, the audit's embedder.

The precision hint is always f32: left alone, OpenVINO runs in bfloat16 on processors with AMX and answers differently.
Every graph gets a static shape, which is what makes it fast. A `Runtime` compiles its graph twice: for one image on all
cores and, on first use, for a few images on one core of many. Passes on one core never wait for another, whatever else
the cores do, and so few images at a time stay in its cache.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from dermlens.bundle.probabilities import softmax
from dermlens.errors import BundleError, UsageError

BATCH = 16  # images that a caller without threads of its own does well to hand over at once
BATCH_224 = 32  # of images of 224 px, where only the batch counts; fewer of larger ones
MOST_IN_A_PASS, FULL_PASS_PX = 4, 224  # fewer of larger images
MOST_LANES = 16  # each holds the activations of a pass
VIEWS = (1, 2, 4, 8)  # test-time views: quarter turns and mirror images

# OpenVINO makes its table of NumPy types when it is first asked, and lets go of the interpreter lock meanwhile: of two
# threads that ask at once, one waits for the table and one for the lock, for ever. So it is asked here, by one thread.
np.asarray(ov.Tensor(np.zeros(1, np.uint8)).data, ov.Type.u8.to_dtype())


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives, all float32: logits (n, classes), embedding (n, d), feature_map (n, h, w, d)."""

    logits: np.ndarray
    embedding: np.ndarray
    feature_map: np.ndarray


Run = Callable[[np.ndarray], Outputs]


@cache
def core() -> ov.Core:
    """Return OpenVINO's core, one a process."""
    return ov.Core()


def read_graph(graph: Path | bytes, weights: bytes | None = None) -> ov.Model:
    """Read a graph from graph.xml with graph.bin beside it, or from the bytes of both."""
    return core().read_model(graph, weights) if isinstance(graph, bytes) else core().read_model(graph)


def with_batch(graph: ov.Model, batch: int) -> ov.Model:
    """Return a copy of the graph for a fixed batch."""
    fixed = graph.clone()
    shape = fixed.input(0).get_partial_shape()
    shape[0] = batch
    fixed.reshape(shape)
    return fixed


def compile_graph(graph: ov.Model, *, batch: int, threads: int | None = None, **hints: Any) -> ov.CompiledModel:
    """Compile for a fixed batch in float32, on all cores or on `threads`; `hints` replace that of low latency."""
    config = {"INFERENCE_PRECISION_HINT": "f32", **(hints or {"PERFORMANCE_HINT": "LATENCY"})}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    return core().compile_model(with_batch(graph, batch), "CPU", config)


def batch_for(size_px: int) -> int:
    """Return how many images of that side go through a graph at once: about as many pixels whatever the size."""
    return max(1, min(BATCH_224, BATCH_224 * 224**2 // size_px**2))


def shape_of(graph: ov.Model, output: int, batch: int) -> tuple[int, ...]:
    """Return the shape of an output for one image."""
    return tuple(int(n) for n in with_batch(graph, batch).output(output).shape[1:])


def run_batches(compiled: ov.CompiledModel, pixels: np.ndarray, output: int = 0) -> np.ndarray:
    """Run uint8 pixels (n, h, w, 3) through a graph of fixed batch, padding the last one; returns output (n, ...)."""
    batch = int(compiled.input(0).shape[0])
    parts = []
    for start in range(0, len(pixels), batch):
        part = pixels[start : start + batch]
        found = compiled(np.ascontiguousarray(_padded(part, batch)), share_inputs=True)[output]
        parts.append(found[: len(part)].copy())
    return np.concatenate(parts)


def _padded(pixels: np.ndarray, size: int) -> np.ndarray:
    if len(pixels) == size:
        return pixels
    return np.concatenate([pixels, np.zeros((size - len(pixels), *pixels.shape[1:]), pixels.dtype)])


class Runtime:
    """One graph, ready to run. Safe to call from several threads.

    Attributes:
        lanes: how many passes can run side by side.
        images_a_pass: how many images such a pass takes.

    Args:
        graph_path: graph.xml with graph.bin beside it.
        threads: processor threads, all cores when None.
    """

    def __init__(self, graph_path: Path, *, threads: int | None = None) -> None:
        self._graph_path = graph_path
        self._lock, self._making = threading.Lock(), threading.Lock()
        # unpinned: several processes that are pinned would all be pinned to the same first cores
        hints = {} if threads is None else {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        compiled = self._compile(1, threads, hints)
        self._single = compiled.create_infer_request()
        self._threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self.lanes = min(self._threads, MOST_LANES)
        side = int(compiled.input(0).shape[1])
        self.images_a_pass = max(1, min(MOST_IN_A_PASS, MOST_IN_A_PASS * FULL_PASS_PX**2 // side**2))
        self._free: queue.LifoQueue[ov.InferRequest] | None = None

    def _compile(self, batch: int, threads: int | None, hints: dict[str, Any]) -> ov.CompiledModel:
        try:
            return compile_graph(read_graph(self._graph_path), batch=batch, threads=threads, **hints)
        except RuntimeError as error:
            raise BundleError(
                f"OpenVINO cannot run {self._graph_path}: {str(error).splitlines()[0]}.",
                remedy="Reinstall dermlens or export the model anew; `dermlens doctor` shows the machine.",
                code="graph_unusable",
            ) from error

    def facts(self) -> dict[str, Any]:
        """Return how OpenVINO compiled the graph for one image: where, in which precision, on how many threads."""
        compiled = self._single.get_compiled_model()
        precision = compiled.get_property("INFERENCE_PRECISION_HINT")
        return {
            "device": ", ".join(compiled.get_property("EXECUTION_DEVICES")),
            "precision": precision.to_string(),
            "threads": self._threads,
            "lanes": self.lanes,
            "images_a_pass": self.images_a_pass,
        }

    @property
    def worthwhile(self) -> int:
        """So many images fill every lane; half of them are answered as soon one by one, each on all cores."""
        return self.lanes * self.images_a_pass

    def run(self, pixels: np.ndarray) -> Outputs:
        """Run the network on all cores.

        Args:
            pixels: uint8 RGB (n, height, width, 3), made by `data.images.load_image`; any n >= 1.
        """
        if len(pixels) <= max(1, self.worthwhile // 2):
            return self._one_by_one(pixels)
        parts = [pixels[at : at + self.images_a_pass] for at in range(0, len(pixels), self.images_a_pass)]
        with ThreadPoolExecutor(self.lanes) as pool:
            return _joined(list(pool.map(self.run_beside, parts)))

    def run_beside(self, pixels: np.ndarray) -> Outputs:
        """Run the network on one core, for callers that do so in several threads at once.

        Args:
            pixels: as for `run`, at most `images_a_pass` of them.
        """
        n, size = len(pixels), self.images_a_pass
        if n <= size // 2:
            return self._one_by_one(pixels)
        free = self._free_lanes()
        request = free.get()
        try:
            return _infer(request, _padded(pixels, size), n)
        finally:
            free.put(request)

    def _one_by_one(self, pixels: np.ndarray) -> Outputs:
        answers = []
        for row in range(len(pixels)):
            with self._lock:
                answers.append(_infer(self._single, pixels[row : row + 1], 1))
        return _joined(answers)

    def _free_lanes(self) -> queue.LifoQueue[ov.InferRequest]:
        with self._making:
            if self._free is None:
                hints = {"NUM_STREAMS": self.lanes, "ENABLE_CPU_PINNING": False}
                compiled = self._compile(self.images_a_pass, self._threads, hints)
                free = queue.LifoQueue[ov.InferRequest]()
                for _ in range(self.lanes):
                    free.put(compiled.create_infer_request())
                self._free = free
            return self._free


def _infer(request: ov.InferRequest, pixels: np.ndarray, n: int) -> Outputs:
    """Return the first n rows of what a request gives; its own memory is written over by its next pass."""
    request.infer({0: np.ascontiguousarray(pixels)}, share_inputs=True)
    return Outputs(*(request.get_output_tensor(place).data[:n].copy() for place in range(3)))


def _joined(parts: list[Outputs]) -> Outputs:
    if len(parts) == 1:
        return parts[0]
    return Outputs(*map(np.concatenate, zip(*((p.logits, p.embedding, p.feature_map) for p in parts), strict=True)))


def check_views(views: int) -> int:
    """Return `views`.

    Raises:
        UsageError: it is not one of `VIEWS`.
    """
    if views not in VIEWS:
        raise UsageError(
            f"Test-time views must be {', '.join(map(str, VIEWS[:-1]))} or {VIEWS[-1]}: got {views}.",
            remedy="Take 1 for the image as it is, 4 for its quarter turns, 8 for their mirror images too.",
            code="views",
        )
    return views


def turned(pixels: np.ndarray, view: int) -> np.ndarray:
    """Return a view of uint8 squares (n, s, s, 3): 0 as they are, 1 half a turn, 2-3 quarter turns, 4-7 mirrored.

    A lesion has no up and no left, so each of them is as good a picture of it as the one that was taken.
    """
    quarters = (0, 2, 1, 3)[view % 4]
    mirrored = pixels[:, :, ::-1] if view >= 4 else pixels
    return np.ascontiguousarray(np.rot90(mirrored, quarters, axes=(1, 2)))


def run_views(run: Run, pixels: np.ndarray, views: int) -> Outputs:
    """Run `views` views of uint8 pixels (n, s, s, 3), each by a call of `run`.

    Returns:
        Embedding and feature map of the image as it is, which novelty and heat maps need. With more than one view the
        logits are the logarithm of the mean probability, so that calibration and decision rule apply as they are.
    """
    first = run(pixels)
    if views == 1:
        return first
    total = softmax(first.logits.astype(np.float64))
    for view in range(1, views):
        total += softmax(run(turned(pixels, view)).logits.astype(np.float64))
    logits = np.log(np.maximum(total / views, 1e-30)).astype(np.float32)
    return Outputs(logits, first.embedding, first.feature_map)
