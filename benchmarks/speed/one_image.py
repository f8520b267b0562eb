"""One image from file to answer in a warm process, against OpenCV and Keras; and where the time goes.

Three files made from an example: 180 px, 600 x 450 px and 4000 x 3000 px (a phone's 12 megapixels) JPEG. The usual way
decodes the whole file with OpenCV, resizes it and calls a Keras Lite0 of the same size. dermlens also calibrates,
judges novelty and quality, and says what remains possible.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.report import cell, markdown, ratio_table
from benchmarks.timing import REPEATS, classifiers, in_turn, spread, times_faster, with_goal, write_sizes
from dermlens import Predictor
from dermlens.data.framing import frame
from dermlens.data.images import decode
from dermlens.inference.runtime import Runtime

GOALS = {("12 megapixels", "model.predict"): 4.0}
STAGES = ("read", "decode", "resize", "network")
REST = "calibration, novelty, quality and the rest"
QUICK = {"repeats": 7}


def run(*, repeats: int = REPEATS) -> dict[str, Any]:
    """Return the ratios by size of the file, the milliseconds behind them, and those of each stage."""
    predictor = Predictor()
    ratios, took_ms = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        files = write_sizes(Path(folder))
        # Before TensorFlow is there, whose threads would be counted in.
        stages = {name: _stages(predictor, path, repeats) for name, path in files.items()}
        usual, quick = _keras_ways()
        for name, path in files.items():
            took = in_turn(
                {
                    "dermlens": partial(predictor.predict, path),
                    "tf.function": partial(quick, path),
                    "model.predict": partial(usual, path),
                },
                repeats=repeats,
            )
            took_ms[name] = {way: spread(values) for way, values in took.items()}
            for way in ("tf.function", "model.predict"):
                ratio = times_faster(took["dermlens"], took[way])
                ratios[f"{name}, OpenCV + {way} / dermlens"] = with_goal(ratio, GOALS.get((name, way)))
    return {"ratios": ratios, "ms": took_ms, "stages, ms": stages}


def _stages(predictor: Predictor, path: Path, repeats: int) -> dict[str, float]:
    """Return median milliseconds of reading, decoding, resizing, network, and the rest of an answer."""
    runtime = Runtime(predictor.bundle.graph_path)
    raw, spec = path.read_bytes(), predictor.bundle.input_spec
    decoded = decode(raw, spec=spec)
    pixels = frame(decoded, spec)[None]
    took = in_turn(
        {
            "read": path.read_bytes,
            "decode": lambda: decode(raw, spec=spec),
            "resize": lambda: frame(decoded, spec),
            "network": lambda: runtime.run(pixels),
            "whole": lambda: predictor.predict(path),
        },
        repeats=repeats,
    )
    found = {name: spread(values)["median"] for name, values in took.items()}
    return {**found, REST: found["whole"] - sum(found[name] for name in STAGES)}


def _keras_ways() -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
    model, _ = classifiers("lite0")
    import tensorflow as tf

    call = tf.function(lambda x: model(x, training=False), jit_compile=False)

    def pixels(path: Path) -> np.ndarray:
        stored = cv2.imread(str(path))
        if stored is None:
            raise SystemExit(f"OpenCV cannot read {path}.")
        image = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
        return cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)[None].astype(np.float32)

    return (lambda path: model.predict(pixels(path), verbose=0)), (lambda path: call(tf.constant(pixels(path))).numpy())


def table(found: Mapping[str, Any]) -> str:
    """Return the ratios, and the milliseconds of dermlens by stage."""
    names = (*STAGES, REST)
    rows = [
        [size, cell(found["ms"][size]["dermlens"], 1), *(f"{stages[name]:.1f}" for name in names)]
        for size, stages in found["stages, ms"].items()
    ]
    return f"{ratio_table(found['ratios'])}\n\n{markdown(['file', 'dermlens, ms', *names], rows)}"
