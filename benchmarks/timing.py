"""What the subjects of speed share: variants timed in turn, ratios with their spread, example files, networks.

A busy machine slows all variants of a round alike, so a ratio is taken within each round and its median reported.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import EXAMPLE, EXAMPLES

REPEATS, WARM_UP = 20, 3
PAUSE_S = 0.05  # until the threads of the variant before have stopped waiting actively
LONG_S = 0.25  # a call that takes longer is not called twice: what it finds in the caches is little of its time
HAM10000_PX = (600, 450)
SIZES_PX = {"180 px": (180, 180), "600 x 450 px": HAM10000_PX, "12 megapixels": (4000, 3000)}

Spread = dict[str, float]


def in_turn(
    variants: Mapping[str, Callable[[], object]], *, repeats: int = REPEATS, warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """Call each variant twice a round and return the milliseconds of the second calls by name, one a round.

    The first call of a round brings back what the variant before it has pushed out of the caches; a pause before it
    lets the other's threads come to rest. Long ones are called once. Warm-up rounds are left out.
    """
    took: dict[str, list[float]] = {name: [] for name in variants}
    last = dict.fromkeys(variants, 0.0)
    for number in range(warm_up + repeats):
        for name, call in variants.items():
            time.sleep(PAUSE_S)
            if last[name] < LONG_S:
                call()
            start = time.perf_counter()
            call()
            last[name] = time.perf_counter() - start
            if number >= warm_up:
                took[name].append(last[name] * 1000)
    return took


def spread(values: Sequence[float]) -> Spread:
    """Return the median with the 10th and 90th percentile."""
    low, high = np.percentile(values, [10, 90])
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}


def times_faster(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return how many times as long theirs takes, round by round: median, 10th and 90th percentile."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])


def with_goal(ratio: Spread, goal: float | None) -> Spread:
    """Return a ratio with what it should reach, where the project has a goal for it."""
    return ratio if goal is None else {**ratio, "goal": goal}


def example_jpegs() -> list[bytes]:
    """Return the example images as JPEG files of the size of HAM10000."""
    found = []
    for path in sorted(EXAMPLES.glob("*.jpg")):
        out = io.BytesIO()
        Image.open(path).convert("RGB").resize(HAM10000_PX, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """Write `count` example files, the examples over and over, and return their paths."""
    raws = example_jpegs()
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(raws[number % len(raws)])
    return paths


def write_sizes(folder: Path) -> dict[str, Path]:
    """Write the example at three sizes, with some sensor noise: a smooth picture would be decoded too quickly."""
    rng, found = np.random.default_rng(0), {}
    for name, size in SIZES_PX.items():
        pixels = np.asarray(Image.open(EXAMPLE).convert("RGB").resize(size, Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        found[name] = folder / f"{size[0]}.jpg"
        Image.fromarray(noisy).save(found[name], quality=90)
    return found


def classifiers(name: str) -> tuple[Any, Any]:
    """Build a backbone with random weights and 8 classes, once as a user would and once as dermlens does.

    Returns:
        pixels -> probabilities, and over the same layers pixels -> [logits, embedding, feature map].
    """
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    import keras

    from dermlens.networks.efficientnet import build_backbone

    backbone = build_backbone(name, weights="none")
    pixels, feature_map = backbone.inputs[0], backbone.outputs[0]
    embedding = keras.layers.GlobalAveragePooling2D()(feature_map)
    usual = keras.Model(pixels, keras.layers.Dense(8, activation="softmax")(embedding))
    logits = keras.layers.Dense(8, name="logits")(embedding)
    return usual, keras.Model(pixels, [logits, embedding, feature_map])
