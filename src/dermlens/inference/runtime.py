"""The OpenVINO session: pixels -> logits, embedding and feature map, in one pass.

The precision hint is always set: left alone, OpenVINO runs in bfloat16 on processors with AMX and answers differently.
A graph is compiled once for single images and once, on first use, for batches: a static shape is what makes it fast.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from dermlens.errors import BundleError

BATCH = 16
ONE_BY_ONE = BATCH // 2  # so few images are faster one by one than in a batch filled up with nothing


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives, all float32: logits (n, classes), embedding (n, d), feature_map (n, h, w, d)."""

    logits: np.ndarray
    embedding: np.ndarray
    feature_map: np.ndarray


class Runtime:
    """One graph, ready to run. Safe to call from several threads; calls take turns.

    Args:
        graph_path: graph.xml with graph.bin beside it.
        precision: "f32" or "bf16", as recorded in the bundle.
        threads: processor threads, all cores when None.
    """

    def __init__(self, graph_path: Path, *, precision: str = "f32", threads: int | None = None) -> None:
        self._core = ov.Core()
        self._config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:  # unpinned: several such processes would all be pinned to the same first cores
            self._config |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self._graph_path = graph_path
        self._requests: dict[int, ov.InferRequest] = {}
        self._lock = threading.Lock()
        self._request(1)

    def _request(self, batch: int) -> ov.InferRequest:
        if batch not in self._requests:
            try:
                model = self._core.read_model(self._graph_path)
                shape = model.input(0).get_partial_shape()
                shape[0] = batch
                model.reshape(shape)
                compiled = self._core.compile_model(model, "CPU", self._config)
            except RuntimeError as error:
                raise BundleError(
                    f"OpenVINO cannot run {self._graph_path}: {str(error).splitlines()[0]}.",
                    remedy="Reinstall dermlens or export the model anew; `dermlens doctor` shows the machine.",
                    code="graph_unusable",
                ) from error
            self._requests[batch] = compiled.create_infer_request()
        return self._requests[batch]

    def facts(self) -> dict[str, Any]:
        """Return how OpenVINO compiled the graph for one image: where, in which precision, on how many threads."""
        compiled = self._request(1).get_compiled_model()
        precision = compiled.get_property("INFERENCE_PRECISION_HINT")
        return {
            "device": ", ".join(compiled.get_property("EXECUTION_DEVICES")),
            "precision": precision.to_string(),
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "batches": [1, BATCH],
        }

    def run(self, pixels: np.ndarray) -> Outputs:
        """Run the network.

        Args:
            pixels: uint8 RGB (n, height, width, 3), made by `data.images.load_image`; any n >= 1.
        """
        parts = []
        for start in range(0, len(pixels), BATCH):
            part = pixels[start : start + BATCH]
            n = len(part)
            if n <= ONE_BY_ONE:
                parts += [self._run(1, part[row : row + 1]) for row in range(n)]
                continue
            if n < BATCH:
                part = np.concatenate([part, np.zeros((BATCH - n, *part.shape[1:]), part.dtype)])
            out = self._run(BATCH, part)
            parts.append(Outputs(out.logits[:n], out.embedding[:n], out.feature_map[:n]))
        if len(parts) == 1:
            return parts[0]
        return Outputs(
            np.concatenate([p.logits for p in parts]),
            np.concatenate([p.embedding for p in parts]),
            np.concatenate([p.feature_map for p in parts]),
        )

    def _run(self, batch: int, pixels: np.ndarray) -> Outputs:
        with self._lock:
            request = self._request(batch)
            request.infer({0: np.ascontiguousarray(pixels)}, share_inputs=True)
            outputs = (request.get_output_tensor(i).data.copy() for i in range(3))
            return Outputs(*outputs)
