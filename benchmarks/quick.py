"""The quick part of the speed suite, which `make test` compares with what is committed; processor time only.

    python benchmarks/quick.py [--rounds 5]

Ratios of processor time, taken in turn in one process, each side its fastest round: another program on the machine
slows both sides and makes neither faster. Each is larger when dermlens is better, and needs no TensorFlow:

    many images     what decoding, network and judging take alone, one after the other / what `predict_many` takes
    the network     multiply-adds a second in the network / in the fastest matrix product, on one core
    12 megapixels   decoding the whole photograph and making it small with OpenCV / `load_image`
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import openvino as ov
from measure import save, spread
from openvino import opset13 as ops

from serving import images

COUNT, SIDE = 48, 768
MULTIPLY_ADDS = 383_907_552  # of an image in the embedded Lite0: `benchmarks/network.py`


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

    predictor, files = Predictor(), images()
    files = [files[n % len(files)] for n in range(COUNT)]
    spec, runtime = predictor.bundle.input_spec, predictor._runtime
    size, large = runtime.images_a_pass, photograph(files[0])
    one_pass = np.stack([load_image(raw, spec) for raw in files[:size]])

    def one_after_the_other() -> None:
        for place in range(0, COUNT, size):
            pixels = np.stack([load_image(raw, spec) for raw in files[place : place + size]])
            predictor._classify(pixels, runtime.run_beside(pixels))

    def whole_photograph() -> Any:
        pixels = cv2.imdecode(np.frombuffer(large, np.uint8), cv2.IMREAD_COLOR)
        return cv2.resize(pixels[:, 500:3500], (spec.size_px, spec.size_px), interpolation=cv2.INTER_AREA)

    calls: dict[str, Callable[[], object]] = {
        "one after the other": one_after_the_other,
        "predict_many": lambda: list(predictor.predict_many(files)),
        "matrix product": matrix_product(),
        "network": lambda: runtime.run_beside(one_pass),
        "photograph, OpenCV": whole_photograph,
        "photograph, load_image": lambda: load_image(large, spec),
    }
    fastest(calls, 1)
    took = fastest(calls, options.rounds)
    rate = {"network": size * MULTIPLY_ADDS / took["network"], "product": SIDE**3 / took["matrix product"]}
    ratios = {
        "many images: one after the other / predict_many": took["one after the other"] / took["predict_many"],
        "one core: network / matrix product": rate["network"] / rate["product"],
        "12 megapixels: OpenCV / load_image": took["photograph, OpenCV"] / took["photograph, load_image"],
    }
    details = {"processor ms": {name: seconds * 1000 for name, seconds in took.items()}}
    save("quick", {name: spread([ratio]) for name, ratio in ratios.items()}, details)


if __name__ == "__main__":
    main()
