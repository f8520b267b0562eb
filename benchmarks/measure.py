"""What the speed benchmarks share: variants timed in turn, ratios with their spread, the machine, its peak.

A busy machine slows all variants of a round alike, so a ratio is taken within each round and its median reported.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results" / "speed"
REPEATS, WARM_UP = 20, 3
LOAD_BEFORE = os.getloadavg()[0]  # before anything is measured
PAUSE_S = 0.05  # until the threads of the variant before have stopped waiting actively
LONG_S = 0.25  # a call that takes longer needs none before it: what it finds in the caches is little of its time


def in_turn(
    variants: Mapping[str, Callable[[], object]], *, repeats: int = REPEATS, warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """Call each variant twice a round and return the milliseconds of the second calls by name, one a round.

    The first call of a round brings back what the variant before it has pushed out of the caches; a pause before it
    lets the other's threads come to rest. Long ones are called once. Warm-up rounds are left out.
    """
    took: dict[str, list[float]] = {name: [] for name in variants}
    last = dict.fromkeys(variants, 0.0)
    for number in range(warm_up + repeats):
        for name, call in variants.items():
            time.sleep(PAUSE_S)
            if last[name] < LONG_S:
                call()
            start = time.perf_counter()
            call()
            last[name] = time.perf_counter() - start
            if number >= warm_up:
                took[name].append(last[name] * 1000)
    return took


def spread(values: list[float]) -> dict[str, float]:
    """Median with the 10th and 90th percentile."""
    low, high = np.percentile(values, [10, 90])
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}


def times_faster(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times as long theirs takes, round by round: median, 10th and 90th percentile."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])


def machine() -> dict[str, Any]:
    import openvino as ov

    packages = ("numpy", "openvino", "opencv-python-headless", "tensorflow", "keras", "onnxruntime")
    return {
        "processor": ov.Core().get_property("CPU", "FULL_DEVICE_NAME"),
        "threads": len(os.sched_getaffinity(0)),
        "load_before": round(LOAD_BEFORE, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {name: found for name in packages if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def classifiers(name: str) -> tuple[Any, Any]:
    """Build a backbone with random weights and 8 classes, once as a user would and once as dermlens does.

    Returns:
        pixels -> probabilities, and over the same layers pixels -> [logits, embedding, feature map].
    """
    import keras

    from dermlens.networks.efficientnet import build_backbone

    backbone = build_backbone(name, weights="none")
    pixels, feature_map = backbone.inputs[0], backbone.outputs[0]
    embedding = keras.layers.GlobalAveragePooling2D()(feature_map)
    usual = keras.Model(pixels, keras.layers.Dense(8, activation="softmax")(embedding))
    logits = keras.layers.Dense(8, name="logits")(embedding)
    return usual, keras.Model(pixels, [logits, embedding, feature_map])


def peak_gflops(side: int = 1024, repeats: int = 20) -> float:
    """Fastest matrix product of this machine, in 10^9 multiply-adds a second: the limit to come near."""
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([side, side], np.float32)
    weights = ops.constant(np.random.default_rng(0).normal(0, 1, (side, side)).astype(np.float32))
    model = ov.Model([ops.matmul(x, weights, False, True)], [x])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = np.random.default_rng(1).normal(0, 1, (side, side)).astype(np.float32)
    best = min(in_turn({"": lambda: compiled(values, share_inputs=True)}, repeats=repeats)[""])
    return side**3 / best * 1e3 / 1e9


def save(
    name: str, ratios: Mapping[str, Mapping[str, float]], details: Mapping[str, Any], *, told: bool = True
) -> None:
    """Print a benchmark's result, and keep it where `compare.py` and `table.py` look for it.

    Args:
        ratios: what must not fall, each larger when dermlens is better; `goal` where the project has one.
        told: print it.
    """
    found = {"name": name, "machine": machine(), "ratios": ratios, "details": details}
    path = _place(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, default=float) + "\n"
    path.write_text(text, encoding="utf-8")
    if told:
        print(text)


def kept(name: str) -> dict[str, Any]:
    """Return what a benchmark kept before, empty where it did not run."""
    path = _place(name)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _place(name: str) -> Path:
    return Path(os.environ.get("DERMLENS_BENCH_OUT", RESULTS)) / f"{name}.json"


def with_goal(ratio: Mapping[str, float], goal: float) -> dict[str, float]:
    return {**ratio, "goal": goal}
