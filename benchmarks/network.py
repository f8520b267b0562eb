"""The network alone, one image and a batch: OpenVINO as dermlens runs it, against Keras as a user would.

    python benchmarks/network.py [--backbones lite0 b0] [--repeats 20]

Random weights (cost does not depend on them), 8 classes, all cores, float32. Per variant milliseconds, and per
backbone how near the graph comes to the limit: its multiply-adds over the fastest matrix product of the same machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import REPEATS, classifiers, in_turn, peak_gflops, save, spread, times_faster, with_goal

GOALS = {  # of one image: model.predict, tf.function
    "lite0": (15, 3),
    "b0": (11, 3),
}
BATCHES = (1, 32)


def compiled(graph: Any, batch: int) -> Any:
    import openvino as ov

    fixed = graph.clone()
    shape = fixed.input(0).get_partial_shape()
    shape[0] = batch
    fixed.reshape(shape)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return ov.Core().compile_model(fixed, "CPU", hints)


def onnx_session(model: Any) -> Any:
    """The same network in ONNX Runtime with all cores, where the extra `export` is installed; else None."""
    if any(importlib.util.find_spec(module) is None for module in ("tf2onnx", "onnxruntime")):
        return None
    import onnxruntime

    from dermlens.export.converters import convert

    with tempfile.TemporaryDirectory() as folder:
        convert(model, "onnx", {}, Path(folder) / "model.onnx", precision="float32")
        return onnxruntime.InferenceSession(Path(folder) / "model.onnx", providers=["CPUExecutionProvider"])


def measured(name: str, repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    import tensorflow as tf

    from dermlens.networks.family import backbone
    from dermlens.networks.openvino import to_openvino

    model, whole = classifiers(name)
    graph, side = to_openvino(whole), int(model.inputs[0].shape[1])
    call = tf.function(lambda x: model(x, training=False), jit_compile=False)
    ratios, details = {}, {"multiply_adds": backbone(name).multiply_adds, "size_px": side}
    for batch in BATCHES:
        pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        floats = pixels.astype(np.float32)
        tensor = tf.constant(floats)
        variants = {
            "model.predict": lambda x=floats, n=batch: model.predict(x, batch_size=n, verbose=0),
            "tf.function": lambda x=tensor: call(x).numpy(),
        }
        session = onnx_session(whole)
        if session is not None:
            variants["ONNX Runtime"] = lambda x=pixels, s=session: s.run(["logits"], {"pixels": x})
        request = compiled(graph, batch)
        variants["openvino f32"] = lambda r=request, x=pixels: r(x, share_inputs=True)
        took = in_turn(variants, repeats=repeats)
        details[f"batch {batch}, ms"] = {key: spread(values) for key, values in took.items()}
        what = f"{name}, {'one image' if batch == 1 else f'batch of {batch}'}"
        goals = GOALS.get(name, (None, None)) if batch == 1 else (None, None)
        for other, goal in zip(("model.predict", "tf.function"), goals, strict=True):
            ratio = times_faster(took["openvino f32"], took[other])
            ratios[f"{what}, {other} / dermlens"] = with_goal(ratio, goal) if goal else ratio
        if "ONNX Runtime" in took:
            ratios[f"{what}, ONNX Runtime / dermlens"] = times_faster(took["openvino f32"], took["ONNX Runtime"])
    return ratios, details


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["lite0", "b0"])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    ratios: dict[str, Any] = {}
    details: dict[str, Any] = {"peak f32, Gmac/s": peak_gflops()}
    for name in options.backbones:
        found, more = measured(name, options.repeats)
        for batch in BATCHES:
            fastest = batch * more["multiply_adds"] / details["peak f32, Gmac/s"] / 1e6
            took = more[f"batch {batch}, ms"]["openvino f32"]["median"]
            more[f"share of the limit, f32, batch {batch}"] = fastest / took
        ratios |= found
        details[name] = more
    save("network", ratios, details)


if __name__ == "__main__":
    main()
