"""What could make TensorFlow's training step faster on a processor, tried: threads, oneDNN, XLA, layout, backends.

    python benchmarks/training_ways.py [--batch 16] [--size 224] [--seconds 20] [--only XLA ...]

The plain Keras step (EfficientNetB0 of keras.applications, Adam, `train_on_batch`) in a process of its own for each
way, since most are settings of a process. Before each way the usual one runs again, so that both see the same machine;
a ratio above 1 is a way that is faster. Ways that cannot run here say why.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from measure import save, spread, times_faster

CORES = len(os.sched_getaffinity(0))
USUAL: dict[str, str] = {"KERAS_BACKEND": "tensorflow"}
WAYS: dict[str, dict[str, str]] = {
    "oneDNN off": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "one thread in an operation": {"TF_NUM_INTRAOP_THREADS": "1"},
    "twice as many threads as cores": {"TF_NUM_INTRAOP_THREADS": str(2 * CORES)},
    "one operation at a time": {"TF_NUM_INTEROP_THREADS": "1"},
    "XLA": {"WAY_XLA": "1"},
    "channels first": {"WAY_LAYOUT": "channels_first"},
    "bfloat16": {"WAY_PRECISION": "mixed_bfloat16"},
    "JAX": {"KERAS_BACKEND": "jax", "WAY_XLA": "1"},  # without, Keras runs it operation by operation
    "PyTorch": {"KERAS_BACKEND": "torch"},
}
NEEDS = {"JAX": "jax", "PyTorch": "torch"}
STEP = """
import json, os, sys, time
import numpy as np
import keras
batch, size, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
layout = os.environ.get("WAY_LAYOUT", "channels_last")
keras.config.set_image_data_format(layout)
keras.config.set_dtype_policy(os.environ.get("WAY_PRECISION", "float32"))
shape = (size, size, 3) if layout == "channels_last" else (3, size, size)
model = keras.applications.EfficientNetB0(weights=None, input_shape=shape, classes=8)
model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy", jit_compile=bool(os.environ.get("WAY_XLA")))
rng = np.random.default_rng(0)
x, y = rng.integers(0, 256, (batch, *shape)).astype(np.float32), np.eye(8, dtype=np.float32)[np.arange(batch) % 8]
for _ in range(2):
    model.train_on_batch(x, y)
took, begun = [], time.perf_counter()
while len(took) < 20 and (len(took) < 3 or time.perf_counter() - begun < seconds):
    start = time.perf_counter()
    model.train_on_batch(x, y)
    took.append((time.perf_counter() - start) * 1000)
print(json.dumps(sorted(took)[len(took) // 2]))
"""


def milliseconds(settings: dict[str, str], arguments: list[str]) -> float | str:
    """Return the median time of a step, or why there is none."""
    environment = {**os.environ, **USUAL, **settings}
    done = subprocess.run(
        [sys.executable, "-c", STEP, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()
        return lines[-1].strip()[:200] if lines else f"ended with {done.returncode}"
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args()
    arguments = [str(options.batch), str(options.size), str(options.seconds)]
    ratios: dict[str, Any] = {}
    details: dict[str, Any] = {"batch": options.batch, "size_px": options.size}
    for name in options.only:
        if name in NEEDS and find_spec(NEEDS[name]) is None:
            details[name] = "not installed"
            continue
        pairs = []
        for _ in range(options.rounds):
            usual, way = milliseconds(USUAL, arguments), milliseconds(WAYS[name], arguments)
            if isinstance(usual, str):
                raise SystemExit(f"The usual step failed: {usual}")
            if isinstance(way, str):
                details[name] = way
                break
            pairs.append((usual, way))
        if pairs:
            ratios[f"{name}: usual step / this way"] = times_faster([way for _, way in pairs], [u for u, _ in pairs])
            for who, values in zip(("usual step", "this way"), zip(*pairs, strict=True), strict=True):
                details[f"{name}, ms, {who}"] = spread(list(values))
        print(name, details.get(name) or ratios[f"{name}: usual step / this way"], flush=True)
    save("training_ways", ratios, details)


if __name__ == "__main__":
    main()
