"""Many images: `predict_many` against what the cores allow, and against tf.data + `model.predict`.

    python benchmarks/many_images.py [--count 256] [--rounds 20]

600 x 450 px JPEG files, the size of HAM10000. What the cores allow: the processor time of decoding and resizing an
image and of the network, each measured with every core at that work alone, over the number of cores. What makes an
answer of the network's outputs is not in it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from measure import REPEATS, classifiers, in_turn, save, spread, times_faster, with_goal
from PIL import Image

from serving import images

BATCH = 32


def processor_seconds(predictor: Any, paths: list[Path], cores: int) -> dict[str, float]:
    """Processor seconds an image of reading + decoding + resizing, of the network, and of making answers.

    Every core does the same work at the same time, since the two threads of one physical core slow each other down.
    """
    from dermlens.data.images import load_image

    spec, runtime = predictor.bundle.input_spec, predictor._runtime
    size = runtime.images_a_pass
    pixels = [load_image(path, spec) for path in paths]
    parts = [np.stack(pixels[place : place + size]) for place in range(0, len(pixels) - size + 1, size)]

    def decode() -> None:
        for path in paths[: len(parts) * size]:
            load_image(path, spec)

    def answer() -> None:
        for part in parts:
            runtime.run_beside(part)

    outputs = [runtime.run_beside(part) for part in parts]

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


def pipeline(paths: list[Path]) -> Any:
    """The usual way: tf.data decodes, resizes and batches ahead; Keras predicts."""
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    import tensorflow as tf

    model, _ = classifiers("lite0")

    def load(path: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, (224, 224), antialias=True)

    names = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    data = names.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    return lambda: model.predict(data, verbose=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=REPEATS)
    options = parser.parse_args()
    import os

    from dermlens import Predictor

    predictor, cores = Predictor(), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, raw in zip(range(options.count), [r for _ in range(options.count) for r in images()], strict=False):
            paths.append(Path(folder) / f"{number}.jpg")
            paths[-1].write_bytes(raw)
        assert Image.open(paths[0]).size == (600, 450)
        shares: list[float] = []
        parts: dict[str, list[float]] = {}
        for _ in range(options.rounds):  # the bound is measured beside each try, on the machine as it is then
            bound = processor_seconds(predictor, paths, cores)
            start = time.perf_counter()
            done = sum(1 for _ in predictor.predict_many(paths))
            allowed = (bound["decode and resize"] + bound["network"]) / cores
            shares.append(allowed * done / (time.perf_counter() - start))
            for name, seconds in bound.items():
                parts.setdefault(name, []).append(1000 * seconds)
        usual = pipeline(paths)
        took = in_turn(
            {"dermlens": lambda: list(predictor.predict_many(paths)), "tf.data + model.predict": usual},
            repeats=options.rounds,
            warm_up=1,
        )
    ratios = {
        "predict_many / what the cores allow": with_goal(spread(shares), 0.9),
        "tf.data + model.predict / predict_many": with_goal(times_faster(*took.values()), 3.0),
    }
    rates = {name: spread([options.count / ms * 1000 for ms in values]) for name, values in took.items()}
    processor = {name: spread(values) for name, values in parts.items()}
    save("many_images", ratios, {"images/s": rates, "processor ms an image": processor, "count": options.count})


if __name__ == "__main__":
    main()
