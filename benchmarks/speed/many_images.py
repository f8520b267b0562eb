"""Many images: `predict_many` against what the cores allow, and against tf.data with `model.predict`.

600 x 450 px JPEG files, the size of HAM10000. What the cores allow: the processor time of decoding and resizing an
image and of the network, each measured with every core at that work alone, over the number of cores. What turns the
network's outputs into an answer is not in it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import cell, ratio_table
from benchmarks.timing import REPEATS, classifiers, in_turn, spread, times_faster, with_goal, write_jpegs
from dermlens import Predictor
from dermlens.data.images import load_image

BATCH = 32
ALLOWED, USUAL = "predict_many / what the cores allow", "tf.data + model.predict / predict_many"
GOALS = {ALLOWED: 0.9, USUAL: 3.0}
QUICK = {"count": 64, "rounds": 3}


def run(*, count: int = 256, rounds: int = REPEATS) -> dict[str, Any]:
    """Return both ratios, images a second of both ways, and the processor time of each part."""
    predictor, cores = Predictor(), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        paths = write_jpegs(Path(folder), count)
        shares: list[float] = []
        parts: dict[str, list[float]] = {}
        for _ in range(rounds):  # the bound is measured beside each try, on the machine as it is then
            bound = _processor_seconds(predictor, paths, cores)
            start = time.perf_counter()
            done = sum(1 for _ in predictor.predict_many(paths))
            allowed = (bound["decode and resize"] + bound["network"]) / cores
            shares.append(allowed * done / (time.perf_counter() - start))
            for name, seconds in bound.items():
                parts.setdefault(name, []).append(1000 * seconds)
        usual = _pipeline(paths)
        took = in_turn(
            {"dermlens": lambda: list(predictor.predict_many(paths)), "tf.data + model.predict": usual},
            repeats=rounds,
            warm_up=1,
        )
    ratios = {ALLOWED: spread(shares), USUAL: times_faster(*took.values())}
    return {
        "ratios": {name: with_goal(ratio, GOALS[name]) for name, ratio in ratios.items()},
        "images/s": {name: spread([count / ms * 1000 for ms in values]) for name, values in took.items()},
        "processor ms per image": {name: spread(values) for name, values in parts.items()},
        "count": count,
    }


def _processor_seconds(predictor: Predictor, paths: list[Path], cores: int) -> dict[str, float]:
    """Return processor seconds per image of reading, decoding and resizing, of the network, and of making answers.

    Every core does the same work at the same time, since the two threads of one physical core slow each other down.
    """
    spec, runtime = predictor.bundle.input_spec, predictor._runtime
    size = runtime.images_a_pass
    pixels = [load_image(path, spec) for path in paths]
    parts = [np.stack(pixels[place : place + size]) for place in range(0, len(pixels) - size + 1, size)]
    outputs = [runtime.run_beside(part) for part in parts]

    def decode() -> None:
        for path in paths[: len(parts) * size]:
            load_image(path, spec)

    def answer() -> None:
        for part in parts:
            runtime.run_beside(part)

    def judge() -> None:
        for part, output in zip(parts, outputs, strict=True):
            predictor._classify(part, output)

    found = {}
    with ThreadPoolExecutor(cores) as pool:
        for name, work in (("decode and resize", decode), ("network", answer), ("answers", judge)):
            start = time.process_time()
            for done in [pool.submit(work) for _ in range(cores)]:
                done.result()
            found[name] = (time.process_time() - start) / cores / len(parts) / size
    return found


def _pipeline(paths: list[Path]) -> Callable[[], Any]:
    """Return the usual way: tf.data decodes, resizes and batches ahead; Keras predicts."""
    model, _ = classifiers("lite0")
    import tensorflow as tf

    def load(path: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, (224, 224), antialias=True)

    names = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    data = names.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    return lambda: model.predict(data, verbose=0)


def table(found: Mapping[str, Any]) -> str:
    """Return the ratios, and the rates and times behind them."""
    rates = ", ".join(f"{name} {cell(value, 0)}" for name, value in found["images/s"].items())
    times = ", ".join(f"{name} {cell(value, 1)}" for name, value in found["processor ms per image"].items())
    return f"{ratio_table(found['ratios'])}\n\nImages a second: {rates}. Processor ms per image: {times}."
