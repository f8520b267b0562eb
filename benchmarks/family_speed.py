"""Every EfficientNet of the family: one image and many through the graph that predicting uses, against Keras.

    python benchmarks/family_speed.py [--only NAME ...] [--repeats 20] [--batch 4] [--resume] [--untimed]

Random weights with settled batch norm (`family.py`), 8 classes, each at its own size: milliseconds of one image, and
images a second in batches on all cores, in float32; how many times as long `tf.function` and `model.predict` take; the
size of the graph; the largest difference to Keras in logits, embedding or feature map as a share of the largest value
of each; the peak memory of a process that predicts one image.
A row runs in a process of its own and is kept at once, and `--resume` measures only what is not kept yet; `--untimed`
measures of all rows what is no time: size, memory and difference.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from family import SETTLED_ON, pictures, settle  # all beside this file
from measure import classifiers, in_turn, kept, save, spread, times_faster
from network import compiled

from dermlens.networks.family import BACKBONES

NAME = "family_speed"
LIGHT = """
import sys
from pathlib import Path
import numpy as np
from dermlens.inference.runtime import Runtime
side = int(sys.argv[2])
Runtime(Path(sys.argv[1])).run(np.zeros((1, side, side, 3), np.uint8))
status = Path("/proc/self/status").read_text()  # getrusage would count the process that started this one
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def built(name: str) -> tuple[Any, Any, Any, int]:
    """Return the classifier as a user builds it, the one of dermlens, its graph and its side in pixels."""
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    from dermlens.networks.openvino import to_openvino

    usual, model = classifiers(name)
    side = int(model.inputs[0].shape[1])
    settle(model, pictures(max(1, SETTLED_ON // (side // 32) ** 2), side))
    return usual, model, to_openvino(model), side


def untimed(model: Any, graph: Any, side: int) -> dict[str, float]:
    """Return the largest difference to Keras, the size of the graph, and the memory that predicting with it takes."""
    import openvino as ov

    pixels = pictures(1, side)
    expected = [np.asarray(values) for values in model(pixels.astype(np.float32), training=False)]
    answered = compiled(graph, 1)(pixels)
    found = {
        "difference to Keras": max(
            float(np.abs(answered[i] - want).max() / np.abs(want).max()) for i, want in enumerate(expected)
        )
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.xml"
        ov.save_model(graph, path, compress_to_fp16=False)
        found["graph, MB"] = sum(part.stat().st_size for part in Path(folder).iterdir()) / 1e6
        command = [sys.executable, "-c", LIGHT, str(path), str(side)]
        found["peak memory of one prediction, MB"] = float(subprocess.check_output(command, text=True))
    return found


def measured(name: str, repeats: int, batch: int) -> dict[str, Any]:
    usual, model, graph, side = built(name)
    import tensorflow as tf

    call = tf.function(lambda x: model(x, training=False), jit_compile=False)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    floats = pixels[:1].astype(np.float32)
    tensor = tf.constant(floats)
    variants: dict[str, Any] = {
        "tf.function": lambda: call(tensor)[0].numpy(),
        "model.predict": lambda: usual.predict(floats, verbose=0),
    }
    one, many = compiled(graph, 1), compiled(graph, batch)
    variants["f32"] = lambda: one(pixels[:1], share_inputs=True)
    variants["f32, batch"] = lambda: many(pixels, share_inputs=True)
    took = in_turn(variants, repeats=repeats, warm_up=2)
    found: dict[str, Any] = {"size_px": side, "batch": batch}
    for key, values in took.items():
        if key.endswith("batch"):
            found[f"{key}, images/s"] = spread([batch / ms * 1000 for ms in values])
        else:
            found[f"{key}, one image, ms"] = spread(values)
    found |= untimed(model, graph, side)
    found["ratios"] = {
        f"{name}, one image, {key} / dermlens": times_faster(took["f32"], took[key])
        for key in ("tf.function", "model.predict")
    }
    return found


def run(name: str, *arguments: str) -> str:
    """Return the last line that a row in a process of its own prints."""
    command = [sys.executable, __file__, "--row", name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--untimed", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row and options.untimed:
        print(json.dumps(untimed(*built(options.row)[1:])))
        return
    if options.row:
        print(json.dumps(measured(options.row, options.repeats, options.batch)))
        return
    before = kept(NAME)
    ratios, details = before.get("ratios", {}), before.get("details", {})
    for name in options.only:
        if name in details and options.untimed:
            details[name] |= json.loads(run(name, "--untimed"))
            save(NAME, ratios, details, told=False)
            print(name, "measured", flush=True)
            continue
        if name in details and options.resume:
            print(f"{name}: measured before", flush=True)
            continue
        details[name] = json.loads(run(name, "--repeats", str(options.repeats), "--batch", str(options.batch)))
        ratios |= details[name].pop("ratios")
        rows = {row: details[row] for row in BACKBONES if row in details}
        save(NAME, ratios, rows, told=False)
        print(
            name, {key: value["median"] for key, value in details[name].items() if isinstance(value, dict)}, flush=True
        )


if __name__ == "__main__":
    main()
