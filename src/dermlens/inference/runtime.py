"""The OpenVINO session: pixels -> logits, embedding and feature map, in one pass.

The precision hint is always f32: left alone, OpenVINO runs in bfloat16 on processors with AMX and answers differently.
The graph is compiled twice, each with a static shape, which is what makes it fast: for one image on all cores, and, on
first use, for a few images on one core of many. Passes on one core never wait for another, whatever else the cores
do, and so few images at a time stay in its cache.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from dermlens.errors import BundleError

BATCH = 16  # images that a caller without threads of its own does well to hand over at once
MOST_IN_A_PASS, FULL_PASS_PX = 4, 224  # fewer of larger images: docs/lab/speed.md
MOST_LANES = 16  # each holds the activations of a pass

# OpenVINO makes its table of NumPy types when it is first asked, and lets go of the interpreter lock meanwhile: of two
# threads that ask at once, one waits for the table and one for the lock, for ever. So it is asked here, by one thread.
np.asarray(ov.Tensor(np.zeros(1, np.uint8)).data, ov.Type.u8.to_dtype())


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives, all float32: logits (n, classes), embedding (n, d), feature_map (n, h, w, d)."""

    logits: np.ndarray
    embedding: np.ndarray
    feature_map: np.ndarray


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
        self._core = ov.Core()
        self._graph_path = graph_path
        self._lock, self._making = threading.Lock(), threading.Lock()
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:  # unpinned: several such processes would all be pinned to the same first cores
            config |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self._single = self._compile(1, config).create_infer_request()
        compiled = self._single.get_compiled_model()
        self._threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self.lanes = min(self._threads, MOST_LANES)
        side = int(compiled.input(0).shape[1])
        self.images_a_pass = max(1, min(MOST_IN_A_PASS, MOST_IN_A_PASS * FULL_PASS_PX**2 // side**2))
        self._free: queue.LifoQueue[ov.InferRequest] | None = None

    def _compile(self, batch: int, config: dict[str, Any]) -> ov.CompiledModel:
        try:
            model = self._core.read_model(self._graph_path)
            shape = model.input(0).get_partial_shape()
            shape[0] = batch
            model.reshape(shape)
            return self._core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **config})
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
        if n < size:
            pixels = np.concatenate([pixels, np.zeros((size - n, *pixels.shape[1:]), pixels.dtype)])
        free = self._free_lanes()
        request = free.get()
        try:
            return _infer(request, pixels, n)
        finally:
            free.put(request)

    def _one_by_one(self, pixels: np.ndarray) -> Outputs:
        return _joined([self._alone(pixels[row : row + 1]) for row in range(len(pixels))])

    def _alone(self, pixels: np.ndarray) -> Outputs:
        with self._lock:
            return _infer(self._single, pixels, 1)

    def _free_lanes(self) -> queue.LifoQueue[ov.InferRequest]:
        with self._making:
            if self._free is None:
                lanes = {"NUM_STREAMS": self.lanes, "INFERENCE_NUM_THREADS": self._threads, "ENABLE_CPU_PINNING": False}
                compiled, free = self._compile(self.images_a_pass, lanes), queue.LifoQueue[ov.InferRequest]()
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
    return Outputs(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.embedding for part in parts]),
        np.concatenate([part.feature_map for part in parts]),
    )


BATCH_224 = 32  # of images of 224 px; fewer of larger ones


def shape_of(graph: ov.Model, output: int, batch: int) -> tuple[int, ...]:
    """Return the shape of an output for one image."""
    return tuple(int(n) for n in with_batch(graph, batch).output(output).shape[1:])


def batch_for(size_px: int) -> int:
    """Return how many images of that side go through a graph at once: about as many pixels whatever the size."""
    return max(1, min(BATCH_224, BATCH_224 * 224**2 // size_px**2))


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
