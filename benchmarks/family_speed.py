"""Every EfficientNet of the family: one image and many through the graph that predicting uses, against Keras.

    python benchmarks/family_speed.py [--only NAME ...] [--repeats 20] [--batch 8]

Random weights, 8 classes, each at its own size: milliseconds of one image and images a second in batches in float32
and, where the processor has it, bfloat16; the size of the graph; and how many times as long `tf.function` takes. A row
runs in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import classifiers, in_turn, save, spread, times_faster
from network import compiled

from dermlens.training.family import BACKBONES


def measured(name: str, repeats: int, batch: int) -> dict[str, Any]:
    from dermlens.training.quiet import load_tensorflow

    load_tensorflow()
    import openvino as ov
    import tensorflow as tf

    from dermlens.training.export import to_openvino

    _, model = classifiers(name)
    graph, side = to_openvino(model), int(model.inputs[0].shape[1])
    call = tf.function(lambda x: model(x, training=False), jit_compile=False)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    tensor = tf.constant(pixels[:1].astype(np.float32))
    half = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    found: dict[str, Any] = {}
    variants: dict[str, Any] = {"tf.function": lambda: call(tensor)[0].numpy()}
    for precision in ["f32", *(["bf16"] if half else [])]:
        one, many = compiled(graph, 1, precision), compiled(graph, batch, precision)
        variants[f"{precision}, one"] = lambda r=one: r(pixels[:1], share_inputs=True)
        variants[f"{precision}, batch"] = lambda r=many: r(pixels, share_inputs=True)
    took = in_turn(variants, repeats=repeats, warm_up=2)
    for key, values in took.items():
        if key.endswith("batch"):
            found[f"{key}es of {batch}, images/s"] = spread([batch / ms * 1000 for ms in values])
        else:
            found[f"{key} image, ms" if "one" in key else f"{key}, one image, ms"] = spread(values)
    found["tf.function / dermlens"] = times_faster(took["f32, one"], took["tf.function"])
    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(graph, Path(folder) / "graph.xml", compress_to_fp16=False)
        found["graph, MB"] = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
    found["peak of the process with TensorFlow, GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measured(options.row, options.repeats, options.batch)))
        return
    ratios, details = {}, {}
    for name in options.only:
        command = [sys.executable, __file__, "--row", name, "--repeats", str(options.repeats)]
        done = subprocess.run([*command, "--batch", str(options.batch)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        ratios[f"{name}, one image, tf.function / dermlens"] = found.pop("tf.function / dermlens")
        details[name] = found
        print(name, {key: value["median"] for key, value in found.items() if isinstance(value, dict)}, flush=True)
    save("family_speed", ratios, details)


if __name__ == "__main__":
    main()
