"""A whole model bundle of a few kilobytes, made without TensorFlow: mean colour -> classes red, green, blue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from dermlens.bundle.bundle import write_bundle

SIZE_PX = 28
CODES = ("BLUE", "GREEN", "RED")
WEIGHTS = (np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], np.float32) / 32).astype(np.float32)  # rows R, G, B
BIAS = np.array([0.1, 0.2, 0.3], np.float32)


def graph() -> ov.Model:
    """uint8 (n, 28, 28, 3) -> logits (n, 3), embedding (n, 3), feature_map (n, 7, 7, 3)."""
    pixels = ops.parameter([-1, SIZE_PX, SIZE_PX, 3], ov.Type.u8, name="pixels")
    planes = ops.transpose(ops.convert(pixels, ov.Type.f32), [0, 3, 1, 2])
    pooled = ops.avg_pool(planes, [4, 4], [0, 0], [0, 0], [4, 4], exclude_pad=True)
    feature_map = ops.transpose(pooled, [0, 2, 3, 1])
    embedding = ops.reduce_mean(feature_map, [1, 2], keep_dims=False)
    logits = ops.add(ops.matmul(embedding, WEIGHTS, False, False), BIAS)
    return ov.Model([ops.result(o) for o in (logits, embedding, feature_map)], [pixels], "tiny")


def card(**changes: Any) -> dict[str, Any]:
    """Return a bundle.json that is complete enough for every verb."""
    figure = {"value": 0.9, "low": 0.8, "high": 1.0}
    return {
        "name": "tiny",
        "version": "0.0.1",
        "scope": "Reads plain colours.",
        "classes": [{"code": code, "name": code.lower()} for code in CODES],
        "input": {"size_px": SIZE_PX, "interpolation": "area", "framing": "centre_crop"},
        "precision": {"policy": "f32", "gate": None},
        "calibration": {
            "temperature": 2.0,
            "prior": [0.2, 0.3, 0.5],
            "training_prior": [1 / 3, 1 / 3, 1 / 3],
        },
        "calibration_fit": {"fitted": True, "reason": None, "lesions": 100},
        "decision_rule": {"kind": "prior_adjusted", "strength": 1.0},
        "data": {"leaky": False},
        "metrics": {"balanced_accuracy": figure, "per_class": {}},
        "licence": {"code": "Apache-2.0", "weights": "CC0"},
        **changes,
    }


def write(folder: Path, *, seen: dict[str, dict[str, list[str]]] | None = None, **changes: Any) -> Path:
    """Write the tiny bundle to `folder` and return it."""
    write_bundle(
        folder,
        card(**changes),
        head=(WEIGHTS, BIAS),
        seen=seen or {},
        write_graph=lambda path: ov.save_model(graph(), path, compress_to_fp16=False),
        model_card="# tiny\n",
    )
    return folder


def colour(code: str, size: tuple[int, int] = (40, 40)) -> np.ndarray:
    """Return a plain image of a class's colour, uint8 (height, width, 3)."""
    image = np.full((*size, 3), 20, np.uint8)
    image[:, :, {"RED": 0, "GREEN": 1, "BLUE": 2}[code]] = 230
    return image
