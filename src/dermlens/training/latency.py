"""How long a backbone takes for one image, in the graph that predicting uses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import keras
import numpy as np
import openvino as ov
from rich.console import Console

from dermlens.reporting.progress import track
from dermlens.training.backbones import build_backbone
from dermlens.training.export import to_openvino
from dermlens.training.features import compile_graph

REPEATS = 20
WARM_UP = 3


def measure_latencies(names: Sequence[str], console: Console) -> dict[str, float]:
    """Return name -> milliseconds for one image at the backbone's own size, with random weights."""
    found = {}
    with track("Latency", len(names), console, unit="backbones") as advance:
        for name in names:
            found[name] = latency_ms(to_openvino(build_backbone(name, weights="none")))
            keras.backend.clear_session()
            advance(1)
    return found


def latency_ms(graph: ov.Model, repeats: int = REPEATS) -> float:
    """Return the median time of one image through an exported graph (OpenVINO, float32, all cores), milliseconds."""
    compiled = compile_graph(graph, batch=1)
    pixels = np.random.default_rng(0).integers(0, 256, tuple(compiled.input(0).shape), dtype=np.uint8)
    took = []
    for _ in range(WARM_UP + max(repeats, 1)):
        start = time.perf_counter()
        compiled(pixels, share_inputs=True)
        took.append(time.perf_counter() - start)
    return 1000 * statistics.median(took[WARM_UP:])
