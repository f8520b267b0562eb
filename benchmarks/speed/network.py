"""Every EfficientNet of the family as predicting runs it: one image and many, against Keras and ONNX Runtime.

Random weights with settled batch norm (cost does not depend on them), 8 classes, each at its own size, float32, all
cores. Besides: the size of the graph, the largest difference to Keras in logits, embedding or feature map as a share
of the largest value of each, and the peak memory of a process that predicts one image. A row runs in a process of its
own; rows that are not asked for keep their figures.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks import CONSOLE
from benchmarks.fresh import fresh, memory_mb
from benchmarks.report import cell, markdown
from benchmarks.speed.family import settled_pictures
from benchmarks.timing import REPEATS, classifiers, in_turn, spread, times_faster, with_goal
from dermlens.inference.runtime import Runtime
from dermlens.networks.family import BACKBONES, backbone

RIVALS = ("tf.function", "model.predict", "ONNX Runtime")
GOALS = {("lite0", "model.predict"): 15, ("lite0", "tf.function"): 3}
GOALS |= {("b0", "model.predict"): 11, ("b0", "tf.function"): 3}
QUICK = {"only": ("lite0",), "repeats": 10}


def run(
    *, only: tuple[str, ...] = tuple(BACKBONES), repeats: int = REPEATS, batch: int = 4, earlier: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the ratios and the row of each network, those of earlier runs among them."""
    ratios, rows = dict(earlier.get("ratios", {})), dict(earlier.get("rows", {}))
    for name in (backbone(name).name for name in only):
        row = fresh(measured, name, repeats, batch).value
        ratios |= row.pop("ratios")
        rows[name] = row
        CONSOLE.print(f"{name}: one image in {row['one image, ms']['median']:.1f} ms", highlight=False)
    return {"ratios": ratios, "rows": {name: rows[name] for name in BACKBONES if name in rows}}


def measured(name: str, repeats: int, batch: int) -> dict[str, Any]:
    """Measure one network in this process."""
    usual, model = classifiers(name)
    import tensorflow as tf

    from dermlens.networks.openvino import to_openvino

    side = int(model.inputs[0].shape[1])
    settled_pictures(model, side)
    graph = to_openvino(model)
    call = tf.function(lambda x: model(x, training=False), jit_compile=False)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    floats = pixels[:1].astype(np.float32)
    tensor, one, many = tf.constant(floats), _compiled(graph, 1), _compiled(graph, batch)
    variants: dict[str, Any] = {
        "one image, ms": lambda: one(pixels[:1], share_inputs=True),
        "batch": lambda: many(pixels, share_inputs=True),
        "tf.function": lambda: call(tensor)[0].numpy(),
        "model.predict": lambda: usual.predict(floats, verbose=0),
    }
    session = _onnx_session(model)
    if session is not None:
        variants["ONNX Runtime"] = lambda: session.run(["logits"], {"pixels": pixels[:1]})
    took = in_turn(variants, repeats=repeats)
    ours = took["one image, ms"]
    found = {"size_px": side, "batch": batch, **{key: spread(took[key]) for key in took if key != "batch"}}
    found["images/s"] = spread([batch / ms * 1000 for ms in took["batch"]])
    found["ratios"] = {
        f"{name}, one image, {way} / dermlens": with_goal(times_faster(ours, took[way]), GOALS.get((name, way)))
        for way in RIVALS
        if way in took
    }
    return found | _untimed(model, graph, side)


def _compiled(graph: Any, batch: int) -> Any:
    fixed = graph.clone()
    shape = fixed.input(0).get_partial_shape()
    shape[0] = batch
    fixed.reshape(shape)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return ov.Core().compile_model(fixed, "CPU", hints)


def _onnx_session(model: Any) -> Any:
    """Return the same network in ONNX Runtime with all cores, where the extra `export` is installed; else None."""
    if any(importlib.util.find_spec(module) is None for module in ("tf2onnx", "onnxruntime")):
        return None
    import onnxruntime

    from dermlens.export.converters import convert

    with tempfile.TemporaryDirectory() as folder:
        convert(model, "onnx", {}, Path(folder) / "model.onnx", precision="float32")
        return onnxruntime.InferenceSession(Path(folder) / "model.onnx", providers=["CPUExecutionProvider"])


def _untimed(model: Any, graph: Any, side: int) -> dict[str, float]:
    """Return the largest difference to Keras, the size of the graph, and the memory that predicting with it takes."""
    from benchmarks.speed.family import pictures

    pixels = pictures(1, side)
    expected = [np.asarray(values) for values in model(pixels.astype(np.float32), training=False)]
    answered = _compiled(graph, 1)(pixels)
    away = max(float(np.abs(answered[i] - want).max() / np.abs(want).max()) for i, want in enumerate(expected))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.xml"
        ov.save_model(graph, path, compress_to_fp16=False)
        megabytes = sum(part.stat().st_size for part in Path(folder).iterdir()) / 1e6
        peak = fresh(light_peak, str(path), side).value
    return {"difference to Keras": away, "graph, MB": megabytes, "peak memory, MB": peak}


def light_peak(path: str, side: int) -> float:
    """Predict one image and return the peak memory of this process in MB."""
    Runtime(Path(path)).run(np.zeros((1, side, side, 3), np.uint8))
    return memory_mb()


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each network."""
    header = ["network", "px", "one image, ms", *(f"{way} / ours" for way in RIVALS), "images/s"]
    rows = []
    for name, row in found["rows"].items():
        ratios = (found["ratios"].get(f"{name}, one image, {way} / dermlens") for way in RIVALS)
        shown = [f"{ratio['median']:.1f}" if ratio else "" for ratio in ratios]
        sizes = [f"{row['graph, MB']:.0f}", f"{row['peak memory, MB']:.0f}", f"{row['difference to Keras']:.0e}"]
        rate = f"{row['images/s']['median']:.3g}"
        rows.append([name, row["size_px"], cell(row["one image, ms"], 1), *shown, rate, *sizes])
    return markdown([*header, "graph, MB", "peak memory, MB", "difference to Keras"], rows)
