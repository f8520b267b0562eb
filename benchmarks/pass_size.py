"""How many images one core should take at once: processor time an image, by the number of images in a pass.

    python benchmarks/pass_size.py [--backbones b0 b4] [--repeats 15]

The embedded model, and others with random weights at their own sizes. In turn, fastest of the repeats, because another
program on the machine can only slow a pass. The last row is what `predict_many` did before: 16 images on all cores.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import openvino as ov
from measure import classifiers, save

from dermlens.bundle.bundle import MODELS_DIR

PASSES = (1, 2, 4, 8, 16)


def request(graph: Any, batch: int, config: dict[str, Any]) -> Any:
    fixed = graph.clone()
    shape = fixed.input(0).get_partial_shape()
    shape[0] = batch
    fixed.reshape(shape)
    config = {"INFERENCE_PRECISION_HINT": "f32", **config}
    return ov.Core().compile_model(fixed, "CPU", config).create_infer_request()


def measured(graph: Any, repeats: int) -> dict[str, float]:
    """Return processor milliseconds an image, by kind of pass."""
    one = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    ready = {f"{n} on one core": (n, request(graph, n, one)) for n in PASSES}
    ready["16 on all cores"] = (16, request(graph, 16, {"PERFORMANCE_HINT": "LATENCY"}))
    side = graph.input(0).get_partial_shape()[1].get_length()
    pixels = np.random.default_rng(0).integers(0, 256, (16, side, side, 3), dtype=np.uint8)
    best = dict.fromkeys(ready, float("inf"))
    for _ in range(repeats):
        for name, (n, call) in ready.items():
            call.infer({0: pixels[:n]}, share_inputs=True)
            start = time.process_time()
            call.infer({0: pixels[:n]}, share_inputs=True)
            best[name] = min(best[name], (time.process_time() - start) * 1000 / n)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    graphs = {"embedded": ov.Core().read_model(MODELS_DIR / "default" / "graph.xml")}
    if options.backbones:
        from dermlens.networks.backend import load_tensorflow

        load_tensorflow()
        from dermlens.networks.openvino import to_openvino

        graphs |= {name: to_openvino(classifiers(name)[1]) for name in options.backbones}
    found = {}
    for name, graph in graphs.items():
        found[f"{name}, processor ms an image"] = measured(graph, options.repeats)
    save("pass_size", {}, found)


if __name__ == "__main__":
    main()
