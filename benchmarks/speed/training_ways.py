"""Other ways to run TensorFlow's training step on a processor: threads, oneDNN, XLA, layout, backends.

The plain Keras step (EfficientNetB0 of keras.applications, Adam, `train_on_batch`) in a process of its own for each
way, since most are settings of a process. Before each way the usual one runs again, so that both see the same machine;
a ratio above 1 is a way that is faster. A way that cannot run here says why.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks import CONSOLE
from benchmarks.fresh import fresh
from benchmarks.report import markdown
from benchmarks.timing import spread, times_faster

USUAL: dict[str, str] = {"KERAS_BACKEND": "tensorflow"}
WAYS: dict[str, dict[str, str]] = {
    "oneDNN off": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "one thread in an operation": {"TF_NUM_INTRAOP_THREADS": "1"},
    "twice as many threads as cores": {"TF_NUM_INTRAOP_THREADS": str(2 * len(os.sched_getaffinity(0)))},
    "one operation at a time": {"TF_NUM_INTEROP_THREADS": "1"},
    "XLA": {"WAY_XLA": "1"},
    "channels first": {"WAY_LAYOUT": "channels_first"},
    "bfloat16": {"WAY_PRECISION": "mixed_bfloat16"},
    "JAX": {"KERAS_BACKEND": "jax", "WAY_XLA": "1"},  # without, Keras runs it operation by operation
    "PyTorch": {"KERAS_BACKEND": "torch"},
}
CHOICES = {"only": tuple(WAYS)}
NEEDS = {"JAX": "jax", "PyTorch": "torch"}


def run(
    *, only: tuple[str, ...] = tuple(WAYS), batch: int = 16, size: int = 224, seconds: float = 20.0, rounds: int = 3
) -> dict[str, Any]:
    """Return the time of the usual step over that of each way."""
    ratios: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for name in only:
        if name in NEEDS and find_spec(NEEDS[name]) is None:
            details[name] = "not installed"
            continue
        arguments = (batch, size, seconds)
        try:
            pairs = [
                [fresh(step_ms, *arguments, environment=USUAL | way).value for way in ({}, WAYS[name])]
                for _ in range(rounds)
            ]
        except SystemExit as failed:
            details[name] = str(failed)
            continue
        usual, this = zip(*pairs, strict=True)
        ratios[f"{name}: usual step / this way"] = times_faster(this, usual)
        details[name] = {"usual step, ms": spread(usual), "this way, ms": spread(this)}
        CONSOLE.print(f"{name}: {details[name]}", highlight=False)
    return {"batch": batch, "size_px": size, "ratios": ratios, "ways": details}


def step_ms(batch: int, size: int, seconds: float) -> float:
    """Return the median milliseconds of a step in this process, which the environment describes."""
    import keras

    layout = os.environ.get("WAY_LAYOUT", "channels_last")
    keras.config.set_image_data_format(layout)
    keras.config.set_dtype_policy(os.environ.get("WAY_PRECISION", "float32"))
    shape = (size, size, 3) if layout == "channels_last" else (3, size, size)
    model = keras.applications.EfficientNetB0(weights=None, input_shape=shape, classes=8)
    xla = bool(os.environ.get("WAY_XLA"))
    model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy", jit_compile=xla)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (batch, *shape)).astype(np.float32)
    y = np.eye(8, dtype=np.float32)[np.arange(batch) % 8]
    for _ in range(2):
        model.train_on_batch(x, y)
    took: list[float] = []
    begun = time.perf_counter()
    while len(took) < 20 and (len(took) < 3 or time.perf_counter() - begun < seconds):
        start = time.perf_counter()
        model.train_on_batch(x, y)
        took.append((time.perf_counter() - start) * 1000)
    return sorted(took)[len(took) // 2]


def table(found: Mapping[str, Any]) -> str:
    """Return the ratios, and which ways could not run."""
    missing = "; ".join(f"{name}: {why}" for name, why in found["ways"].items() if isinstance(why, str))
    rows = [[name.partition(":")[0], ratio] for name, ratio in found["ratios"].items()]
    return markdown(["way", "usual step / this way"], rows, 2) + (f"\n\nNot measured: {missing}." if missing else "")
