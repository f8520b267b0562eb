"""A whole model bundle of a few kilobytes, made without TensorFlow: mean colour -> classes red, green, blue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from dermlens.bundle.bundle import BASELINES_FILE, LESIONS_FILE, Arrays, load_bundle, rewrite_bundle, write_bundle
from dermlens.bundle.card import make_card
from dermlens.bundle.limits import ROLES, Lesions, no_lesions
from dermlens.bundle.quality import QualityLimits
from dermlens.bundle.trust import TrustFacts
from dermlens.evaluation.baselines import AnswersOnTest

NOT_FITTED = TrustFacts(None, None, 0.95, None, QualityLimits(0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0), None)
"""Limits that pass every image."""


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
    """Return a bundle.json that is complete enough for every verb; a change to an object leaves its other fields."""
    figure = {"value": 0.9, "low": 0.8, "high": 1.0}
    whole: dict[str, Any] = {
        "name": "tiny",
        "version": "0.0.1",
        "created": "2026-01-01",
        "scope": "Reads plain colours.",
        "modality": "unknown",
        "classes": [{"code": code, "name": code.lower()} for code in CODES],
        "input": {"size_px": SIZE_PX, "interpolation": "area", "framing": "centre_crop"},
        "backbone": {"name": "tiny", "title": "tiny", "weights": "none", "licence": "none"},
        "calibration": {
            "temperature": 2.0,
            "training_prior": [1 / 3, 1 / 3, 1 / 3],
            "bias": [0.0, 0.0, 0.0],
        },
        "calibration_fit": {"fitted": True, "reason": None, "lesions": 100, "bias": None},
        "case_mix": {"name": "equal", "shares": dict.fromkeys(CODES, 1 / 3)},
        "training_mix": {"name": "training", "shares": dict(zip(CODES, (0.2, 0.3, 0.5), strict=True))},
        "recipe": {"backbone": "tiny", "weights": "none", "fine_tune": "head", "precision": "float32"},
        "data": {
            "fingerprint": "0" * 64,
            "manifest_sha256": None,
            "images": 300,
            "images_unreadable": 0,
            "unreadable": [],
            "lesions_known": 0.0,
            "roles": {},
            "sources": [],
            "notes": [],
            "audit": [],
            "leaky": False,
            "not_tested_on": [],
        },
        "training": {
            "epochs_done": 1,
            "best_epoch": 1,
            "interrupted": False,
            "stopped": None,
            "select_balanced_accuracy": 0.9,
            "minutes": 0.1,
            "export_difference": 0.0,
        },
        "metrics": {
            "split": "test role",
            "n": 30,
            "n_lesions": 30,
            "classes": list(CODES),
            "interval": {},
            "case_mix": "equal",
            **dict.fromkeys(("accuracy", "balanced_accuracy", "macro_auc", "ece", "brier", "log_loss"), figure),
            "per_class": {},
            "confusion_matrix": {},
        },
        "probe": {
            **dict.fromkeys(("accuracy", "balanced_accuracy", "macro_auc"), figure),
            "model_minus_probe_balanced_accuracy": figure,
            "regularisation_c": 0.01,
            "converged": True,
            "strength_at_edge": False,
        },
        "baselines": {
            "lesions": 30,
            "majority_class": "RED",
            "methods": {},
            "model_minus": {},
            "better_than_probe": None,
            "words": [],
        },
        "licence": {"code": "Apache-2.0", "weights": "CC0"},
        "versions": {},
        "trust": NOT_FITTED.as_dict(),
    }
    mixes = changes.pop("mixes", None)
    if mixes is not None:
        whole |= {"case_mix": mixes["equal"], "training_mix": mixes["training"]}
    for name, value in changes.items():
        old = whole.get(name)
        whole[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return whole


def named(*codes: str) -> dict[str, Any]:
    """Return the changes to a card that call the classes otherwise: ("NV", "BKL", "MEL") for blue, green, red."""
    shares = zip(("equal", "training"), ((1 / 3,) * 3, (0.2, 0.3, 0.5)), strict=True)
    mixes = {name: {"name": name, "shares": dict(zip(codes, of, strict=True))} for name, of in shares}
    # a mapping of a card is merged with the old one, so these are given whole by `write`
    return {"classes": [{"code": c, "name": c.lower()} for c in codes], "mixes": mixes}


def baselines() -> dict[str, np.ndarray]:
    """Return the arrays of a baselines.npz that knows no image."""
    nothing = np.zeros(0, np.int64)
    return AnswersOnTest((), nothing, nothing, nothing, nothing, majority=0).arrays()


def known(n: int = 90, *, spread: float = 1.5, seed: int = 0) -> Lesions:
    """Return n made-up lesions, a third of each class, that the network tells apart the better the smaller `spread`."""
    generator = np.random.default_rng(seed)
    classes = np.arange(n) % len(CODES)
    logits = 6.0 * (classes[:, None] == np.arange(len(CODES))) + generator.normal(0, 2 * spread, (n, len(CODES)))
    return Lesions(logits.astype(np.float32), classes.astype(np.int64), np.arange(n))


def lesions(calibrate: Lesions | None = None, test: Lesions | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a lesions.npz; a role that is not given is empty."""
    given = zip(ROLES, (calibrate, test), strict=True)
    return {name: values for role, of in given for name, values in (of or no_lesions(len(CODES))).arrays(role).items()}


def write(
    folder: Path,
    *,
    seen: dict[str, dict[str, list[str]]] | None = None,
    calibrate: Lesions | None = None,
    test: Lesions | None = None,
    **changes: Any,
) -> Path:
    """Write the tiny bundle to `folder` and return it."""
    write_bundle(
        folder,
        make_card(card(**changes)),
        head=(WEIGHTS, BIAS),
        seen=seen or {},
        write_graph=lambda path: ov.save_model(graph(), path, compress_to_fp16=False),
        arrays={BASELINES_FILE: baselines(), LESIONS_FILE: lesions(calibrate, test)},
    )
    return folder


def add(folder: Path, arrays: dict[str, Arrays], trust: dict[str, Any] | None = None) -> Path:
    """Give the bundle at `folder` more arrays, by file and name, and other trust facts."""
    card = load_bundle(folder).card
    rewrite_bundle(folder, card if trust is None else card.with_trust(trust), arrays)
    return folder


def colour(code: str, size: tuple[int, int] = (40, 40)) -> np.ndarray:
    """Return a plain image of a class's colour, uint8 (height, width, 3)."""
    image = np.full((*size, 3), 20, np.uint8)
    image[:, :, {"RED": 0, "GREEN": 1, "BLUE": 2}[code]] = 230
    return image
