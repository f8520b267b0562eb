"""The quick part of the speed suite, which `make test` runs: its floors, and what is committed; processor time only.

    python benchmarks/quick.py [--rounds 5]

Ratios of processor time, taken in turn in one process, each side its fastest round: another program on the machine
slows both sides and makes neither faster. Each is larger when dermlens is better, and needs no TensorFlow:

    many images     what decoding, network and judging take alone, one after the other / what `predict_many` takes
    the network     multiply-adds a second in the network / in the fastest matrix product, on one core
    12 megapixels   decoding the whole photograph and making it small with OpenCV / `load_image`

The same on every machine: two threads, whatever the number of cores. Two threads may share one core, which makes each
of them slower; so the first ratio allows for how much more a pass takes beside another one than alone. Each ratio has a
floor that no processor tried came near (an EPYC, a Xeon, and this one held to AVX2), and that is missed when what it
watches is lost (`FLOORS`): 0.13 where no layer is fused with the next, 0.7 where a photograph is decoded whole.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import openvino as ov
from measure import save, spread
from openvino import opset13 as ops

from serving import images

COUNT, SIDE, PASSES, THREADS = 48, 768, 6, min(2, os.cpu_count() or 1)
MULTIPLY_ADDS = 383_907_552  # of an image in the embedded Lite0: `benchmarks/network.py`

MANY = "many images: one after the other / predict_many"
NETWORK = "one core: network / matrix product"
PHOTOGRAPH = "12 megapixels: OpenCV / load_image"
FLOORS = {MANY: 0.6, NETWORK: 0.2, PHOTOGRAPH: 1.8}


def fastest(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the processor seconds of each call's fastest round."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - start)
    return best


def matrix_product() -> Callable[[], object]:
    x = ops.parameter([SIDE, SIDE], np.float32)
    weights = ops.constant(np.random.default_rng(0).normal(0, 1, (SIDE, SIDE)).astype(np.float32))
    one_core = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    compiled = ov.Core().compile_model(ov.Model([ops.matmul(x, weights, False, True)], [x]), "CPU", one_core)
    values = np.random.default_rng(1).normal(0, 1, (SIDE, SIDE)).astype(np.float32)
    return lambda: compiled(values, share_inputs=True)


def photograph(small: bytes) -> bytes:
    pixels = cv2.imdecode(np.frombuffer(small, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", cv2.resize(pixels, (4000, 3000), interpolation=cv2.INTER_CUBIC))[1].tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from dermlens import Predictor
    from dermlens.data.images import load_image

    predictor, files = Predictor(threads=THREADS), images()
    files = [files[n % len(files)] for n in range(COUNT)]
    spec, runtime = predictor.bundle.input_spec, predictor._runtime
    size, large = runtime.images_a_pass, photograph(files[0])
    one_pass = np.stack([load_image(raw, spec) for raw in files[:size]])

    def one_after_the_other() -> None:
        for place in range(0, COUNT, size):
            pixels = np.stack([load_image(raw, spec) for raw in files[place : place + size]])
            predictor._classify(pixels, runtime.run_beside(pixels))

    def beside_another() -> None:
        with ThreadPoolExecutor(runtime.lanes) as pool:
            list(pool.map(runtime.run_beside, [one_pass] * PASSES * runtime.lanes))

    def whole_photograph() -> Any:
        pixels = cv2.imdecode(np.frombuffer(large, np.uint8), cv2.IMREAD_COLOR)
        return cv2.resize(pixels[:, 500:3500], (spec.size_px, spec.size_px), interpolation=cv2.INTER_AREA)

    calls: dict[str, Callable[[], object]] = {
        "one after the other": one_after_the_other,
        "predict_many": lambda: list(predictor.predict_many(files)),
        "matrix product": matrix_product(),
        "network": lambda: runtime.run_beside(one_pass),
        "passes beside each other": beside_another,
        "photograph, OpenCV": whole_photograph,
        "photograph, load_image": lambda: load_image(large, spec),
    }
    fastest(calls, 1)
    took = fastest(calls, options.rounds)
    rate = {"network": size * MULTIPLY_ADDS / took["network"], "product": SIDE**3 / took["matrix product"]}
    shared = max(1.0, took["passes beside each other"] / (PASSES * runtime.lanes) / took["network"])
    ratios = {
        MANY: shared * took["one after the other"] / took["predict_many"],
        NETWORK: rate["network"] / rate["product"],
        PHOTOGRAPH: took["photograph, OpenCV"] / took["photograph, load_image"],
    }
    details = {
        "threads": THREADS,
        "a pass beside another / alone": shared,
        "processor ms": {name: seconds * 1000 for name, seconds in took.items()},
    }
    save("quick", {name: {**spread([ratio]), "floor": FLOORS[name]} for name, ratio in ratios.items()}, details)


if __name__ == "__main__":
    main()
