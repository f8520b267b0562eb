"""The speed gate of the tests: three ratios of processor time that must not fall below their floor.

Taken in turn in one process, each side its fastest round: another program on the machine slows both sides and makes
neither faster. Each is larger when dermlens is better, and needs no TensorFlow:

    many images     what decoding, network and judging take alone, one after the other / what `predict_many` takes
    the network     multiply-adds a second in the network / in the fastest matrix product, on one core
    12 megapixels   decoding the whole photograph and making it small with OpenCV / `load_image`

The same on every machine: two threads, whatever the number of cores. Two threads may share one core, which makes each
of them slower; so the first ratio allows for how much more a pass takes beside another one than alone. No processor
tried came near a floor (an EPYC, a Xeon, and this one limited to AVX2), and each is missed when what it watches is
lost: 0.13 where no layer is fused with the next, 0.7 where a photograph is decoded whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import openvino as ov
from openvino import opset13 as ops

from benchmarks.report import markdown
from benchmarks.timing import example_jpegs, spread
from dermlens import Predictor
from dermlens.data.images import load_image

COUNT, SIDE, PASSES, THREADS = 48, 768, 6, min(2, os.cpu_count() or 1)
MULTIPLY_ADDS = 383_907_552  # of an image in the embedded Lite0

MANY = "many images: one after the other / predict_many"
NETWORK = "one core: network / matrix product"
PHOTOGRAPH = "12 megapixels: OpenCV / load_image"
FLOORS = {MANY: 0.6, NETWORK: 0.2, PHOTOGRAPH: 1.8}
QUICK: dict[str, Any] = {}


def run(*, rounds: int = 5) -> dict[str, Any]:
    """Return the ratios with their floors, and the processor time of each part."""
    predictor, files = Predictor(threads=THREADS), example_jpegs()
    files = [files[n % len(files)] for n in range(COUNT)]
    runtime = predictor._runtime
    calls = _calls(predictor, files)
    _fastest(calls, 1)
    took = _fastest(calls, rounds)
    size, lanes = runtime.images_a_pass, runtime.lanes
    rate = {"network": size * MULTIPLY_ADDS / took["network"], "product": SIDE**3 / took["matrix product"]}
    shared = max(1.0, took["passes beside each other"] / (PASSES * lanes) / took["network"])
    ratios = {
        MANY: shared * took["one after the other"] / took["predict_many"],
        NETWORK: rate["network"] / rate["product"],
        PHOTOGRAPH: took["photograph, OpenCV"] / took["photograph, load_image"],
    }
    return {
        "ratios": {name: {**spread([ratio]), "floor": FLOORS[name]} for name, ratio in ratios.items()},
        "threads": THREADS,
        "a pass beside another / alone": shared,
        "processor ms": {name: seconds * 1000 for name, seconds in took.items()},
    }


def _calls(predictor: Predictor, files: list[bytes]) -> dict[str, Callable[[], object]]:
    spec, runtime = predictor.bundle.input_spec, predictor._runtime
    size, large = runtime.images_a_pass, _photograph(files[0])
    one_pass = np.stack([load_image(raw, spec) for raw in files[:size]])

    def one_after_the_other() -> None:
        for place in range(0, COUNT, size):
            pixels = np.stack([load_image(raw, spec) for raw in files[place : place + size]])
            predictor._classify(pixels, runtime.run_beside(pixels))

    def beside_another() -> None:
        with ThreadPoolExecutor(runtime.lanes) as pool:
            list(pool.map(runtime.run_beside, [one_pass] * PASSES * runtime.lanes))

    def whole_photograph() -> Any:
        square = _opencv_pixels(large)[:, 500:3500]
        return cv2.resize(square, (spec.size_px, spec.size_px), interpolation=cv2.INTER_AREA)

    return {
        "one after the other": one_after_the_other,
        "predict_many": lambda: list(predictor.predict_many(files)),
        "matrix product": _matrix_product(),
        "network": lambda: runtime.run_beside(one_pass),
        "passes beside each other": beside_another,
        "photograph, OpenCV": whole_photograph,
        "photograph, load_image": lambda: load_image(large, spec),
    }


def _fastest(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the processor seconds of each call's fastest round."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - start)
    return best


def _matrix_product() -> Callable[[], object]:
    x = ops.parameter([SIDE, SIDE], np.float32)
    weights = ops.constant(np.random.default_rng(0).normal(0, 1, (SIDE, SIDE)).astype(np.float32))
    one_core = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    compiled = ov.Core().compile_model(ov.Model([ops.matmul(x, weights, False, True)], [x]), "CPU", one_core)
    values = np.random.default_rng(1).normal(0, 1, (SIDE, SIDE)).astype(np.float32)
    return lambda: compiled(values, share_inputs=True)


def _photograph(small: bytes) -> bytes:
    pixels = cv2.resize(_opencv_pixels(small), (4000, 3000), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def _opencv_pixels(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise SystemExit("OpenCV cannot decode an example image.")
    return pixels


def table(found: Mapping[str, Any]) -> str:
    """Return the ratios beside their floors."""
    rows = [[name, f"{ratio['median']:.2f}", ratio["floor"]] for name, ratio in found["ratios"].items()]
    return markdown(["ratio of processor time", "measured", "floor"], rows)
