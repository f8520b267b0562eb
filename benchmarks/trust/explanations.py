"""Is the class activation map more than a picture? Checks of the method on test lesions of the embedded model.

- Deletion and insertion (Petsiuk et al. 2018): the places that the map names first are blurred away, or brought back
  into a blurred picture; the probability of the diagnosis should fall, or rise, sooner than with a random order or
  with the order from the middle outwards.
- Randomised head (Adebayo et al. 2018): with another last layer the map must be another.
- Pasted lesions: a lesion is pasted into one quarter of another picture whose own lesion is blurred away; the map's
  peak for the diagnosis should lie in that quarter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import CONSOLE
from benchmarks.report import cell, markdown, model_of
from benchmarks.roles import embedded_roles
from dermlens import Predictor
from dermlens.bundle.probabilities import probabilities
from dermlens.data.images import load_image
from dermlens.inference.explain import relevance_of
from dermlens.reporting.progress import track
from dermlens.text import wilson_interval

STEPS = 14
CELLS = 14  # places are squares of 16 px
KINDS, OTHERS = ("delete", "insert"), ("random", "middle")


def run(*, data: Path, images: int = 40, seed: int = 0) -> dict[str, Any]:
    """Return the three checks on some test images."""
    predictor = Predictor("default")
    bundle = predictor.bundle
    test = embedded_roles(bundle, data)["test"]
    rng = np.random.default_rng(seed)
    records = [test.records[i] for i in np.sort(rng.choice(len(test.records), images, replace=False))]
    pictures = [load_image(r.path, bundle.input_spec, frame_aspect=r.frame_aspect) for r in records]
    weights, _ = bundle.head()
    y, x = np.indices((224, 224)) - 111.5
    middle = -np.hypot(x, y).astype(np.float32)
    areas: dict[str, dict[str, list[float]]] = {kind: {m: [] for m in ("map", *OTHERS)} for kind in KINDS}
    alike, hits = [], []
    with track("Maps", len(pictures), CONSOLE) as advance:
        for number, image in enumerate(pictures):
            found = predictor.explain(image)
            code = bundle.codes.index(found.code)
            orders = {"map": found.relevance, "middle": middle, "random": rng.random((224, 224), np.float32)}
            for name, relevance in orders.items():
                order = rng.permutation(CELLS * CELLS) if name == "random" else _order(relevance)
                for kind in KINDS:
                    areas[kind][name].append(_curve(predictor, image, order, code, insert=kind == "insert"))
            features = predictor._runtime.run(image[None]).feature_map[0]
            shuffled = rng.permutation(weights.ravel()).reshape(weights.shape)
            other = relevance_of((features @ shuffled[:, code]).astype(np.float32), (224, 224))
            alike.append(_correlation(found.relevance, other))
            quarter = int(rng.integers(4))
            paste = _pasted(image, pictures[(number + 1) % len(pictures)], quarter)
            peak = np.unravel_index(np.argmax(predictor.explain(paste, found.code).relevance), (224, 224))
            hits.append((peak[0] >= 112) * 2 + (peak[1] >= 112) == quarter)
            advance(1)
    low, high = wilson_interval(float(np.mean(hits)), len(hits))
    return {
        "model": model_of(bundle),
        "images": len(pictures),
        "seed": seed,
        **{f"{kind}_map_minus_{name}": _interval(_minus(areas[kind], name), seed) for kind in KINDS for name in OTHERS},
        "correlation_with_randomised_head": _interval(alike, seed),
        "pasted_lesion_pointed_at": {"value": float(np.mean(hits)), "low": low, "high": high, "chance": 0.25},
    }


def _order(relevance: np.ndarray) -> np.ndarray:
    """Return the order of the squares, the most relevant first, (196,)."""
    mean = cv2.resize(relevance, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    return np.argsort(-mean.ravel(), kind="stable")


def _curve(predictor: Predictor, image: np.ndarray, order: np.ndarray, code: int, *, insert: bool) -> float:
    """Return the mean probability of the class while the squares are blurred away, or brought back."""
    blurred = cv2.GaussianBlur(image, (0, 0), 16)
    start, other = (blurred, image) if insert else (image, blurred)
    batch = []
    for share in np.linspace(0, 1, STEPS):
        mask = np.zeros(CELLS * CELLS, np.uint8)
        mask[order[: round(share * CELLS * CELLS)]] = 1
        whole = cv2.resize(mask.reshape(CELLS, CELLS), image.shape[:2], interpolation=cv2.INTER_NEAREST)
        batch.append(np.where(whole[:, :, None] == 1, other, start))
    logits = predictor._runtime.run(np.stack(batch)).logits
    bundle = predictor.bundle
    return float(probabilities(logits, bundle.calibration, bundle.case_mix.of(bundle.codes))[:, code].mean())


def _interval(values: list[float], seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    array = np.array(values)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(1000)]
    return {
        "value": float(array.mean()),
        "low": float(np.quantile(means, 0.025)),
        "high": float(np.quantile(means, 0.975)),
    }


def _pasted(lesion: np.ndarray, background: np.ndarray, quarter: int) -> np.ndarray:
    """Paste the middle of one picture into a quarter of another, whose own middle is blurred away."""
    size = background.shape[0]
    half = size // 2
    result = cv2.GaussianBlur(background, (0, 0), 24)
    patch = cv2.resize(
        lesion[size // 8 : -size // 8, size // 8 : -size // 8], (half, half), interpolation=cv2.INTER_AREA
    )
    y, x = divmod(quarter, 2)
    place = (slice(y * half, (y + 1) * half), slice(x * half, (x + 1) * half))
    yy, xx = np.indices((half, half)) - (half - 1) / 2
    soft = np.clip((half / 2 - np.hypot(xx, yy)) / 8, 0, 1)[:, :, None]
    result[place] = (patch * soft + result[place] * (1 - soft)).astype(np.uint8)
    return result


def _minus(rows: Mapping[str, list[float]], other: str) -> list[float]:
    return [a - b for a, b in zip(rows["map"], rows[other], strict=True)]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each check."""
    pointed = found["pasted_lesion_pointed_at"]
    rows = [
        ["deletion: probability, map minus random order (lower is better)", found["delete_map_minus_random"]],
        ["deletion: map minus the order from the middle outwards", found["delete_map_minus_middle"]],
        ["insertion: probability, map minus random order (higher is better)", found["insert_map_minus_random"]],
        ["insertion: map minus the order from the middle outwards", found["insert_map_minus_middle"]],
        ["correlation with the map of a randomised last layer", found["correlation_with_randomised_head"]],
        [f"a pasted lesion is pointed at (chance {pointed['chance']})", cell(pointed, 2)],
    ]
    return markdown([f"{found['images']} test images", "95 % interval"], rows)
