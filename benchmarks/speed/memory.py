"""Peak memory of a training step against the estimate before it starts, and of decoding one large image.

Each is measured in a process of its own. A step is one of a network with random weights on random pixels: its peak,
less what TensorFlow, the network and its weights took before, is compared with the estimate of `training/device`;
a share above 1 means that the estimate is too low. The image is a made one, lines on black: what it shows hardly
changes what its decoder allocates.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import CONSOLE
from benchmarks.fresh import fresh, memory_mb
from benchmarks.report import markdown

CHOICES = {"modes": ("top", "full"), "batch_norm": ("frozen", "updated")}
FORMATS: dict[str, dict[str, Any]] = {
    "baseline.jpg": {},
    "progressive.jpg": {"progressive": True, "subsampling": 0},
    "rgb.png": {},
    "deflate.tif": {"compression": "tiff_deflate"},
    "lossy.webp": {"quality": 80, "method": 0},
}


def run(
    *,
    rows: tuple[str, ...] = ("lite0", "b0"),
    batches: tuple[int, ...] = (8, 32),
    modes: tuple[str, ...] = ("top", "full"),
    size_px: int = 224,
    batch_norm: str = "frozen",
    side_px: int = 7000,
) -> dict[str, Any]:
    """Return memory and estimate of each step, and the memory of decoding each format; `side_px` 0 leaves that out."""
    steps = []
    for name, batch, mode in itertools.product(rows, batches, modes):
        found = fresh(step_memory, name, size_px, batch, mode, batch_norm).value
        steps.append({"network": name, "batch": batch, "mode": mode, **found})
        CONSOLE.print(f"{name}, batch of {batch}, {mode}: {found['measured_gb']:.2f} GB", highlight=False)
    facts = {"size_px": size_px, "batch_norm": batch_norm, "steps": steps, "side_px": side_px}
    return facts | {"decoding": _decoding(side_px) if side_px else {}}


def _decoding(side_px: int) -> dict[str, Any]:
    pixels = np.zeros((side_px, side_px, 3), np.uint8)
    pixels[::64], pixels[:, ::50] = 200, 90
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, how in FORMATS.items():
            path = Path(folder) / name
            Image.fromarray(pixels).save(path, **how)
            found[name] = {"file_mb": path.stat().st_size / 1e6, "peak_mb": fresh(decode_memory, str(path)).value}
    return found


def decode_memory(path: str) -> float:
    """Decode a file and return by how many MB the peak of this process rises."""
    from dermlens.data.images import InputSpec, load_image

    data, spec = Path(path).read_bytes(), InputSpec(size_px=224)
    load_image(np.zeros((64, 64, 3), np.uint8), spec)
    before = memory_mb()
    load_image(data, spec)
    return memory_mb() - before


def step_memory(name: str, size_px: int, batch: int, mode: str, batch_norm: str) -> dict[str, float]:
    """Take three training steps in this process; return by how many GB its peak rises, and the estimate."""
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    from dermlens.networks.backend import keep_freed_memory
    from dermlens.networks.efficientnet import backbone
    from dermlens.training.device import bytes_per_image, fixed_bytes, resolve
    from dermlens.training.network import add_head, open_backbone
    from dermlens.training.optimiser import make_averages, make_optimiser
    from dermlens.training.recipe import make_recipe
    from dermlens.training.step import make_step

    keep_freed_memory()
    settings = {"backbone": name, "weights": "none", "size_px": size_px, "fine_tune": mode, "batch_size": batch}
    recipe = resolve(make_recipe({**settings, "batch_norm": batch_norm}), backbone(name))
    network = add_head(open_backbone(recipe), recipe, 8)
    model = network.whole if mode == "full" else network.classifier
    before = memory_mb()
    optimiser, average = make_optimiser(model, recipe), make_averages(model)
    step = make_step(model, recipe, optimiser, average, np.arange(batch) % 8, 8)
    x = np.random.default_rng(0).random((batch, *model.inputs[0].shape[1:]), np.float32)
    y, mix = np.eye(8, dtype=np.float32)[np.arange(batch) % 8], np.ones(batch, np.float32)
    for _ in range(3):
        step(x, y, mix, np.float32(1e-4)).numpy()
    estimate = fixed_bytes(model) + batch * bytes_per_image(model)
    return {"measured_gb": (memory_mb() - before) * 2**20 / 1e9, "estimate_gb": estimate / 1e9}


def table(found: Mapping[str, Any]) -> str:
    """Return the steps, and the formats."""
    rows = [
        [row["network"], row["batch"], row["mode"], *(f"{value:.2f}" for value in (gb, estimate, gb / estimate))]
        for row in found["steps"]
        for gb, estimate in [(row["measured_gb"], row["estimate_gb"])]
    ]
    steps = markdown(["network", "batch", "trained", "peak of a step, GB", "estimate, GB", "share"], rows)
    formats = ", ".join(f"`{name}` {row['peak_mb']:.0f} MB" for name, row in found["decoding"].items())
    side = f"{found['side_px']:,}"
    return f"{steps}\n\nDecoding one image of {side} x {side} px takes: {formats}." if formats else steps
