"""Small data sets and recipes for whole trainings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

import networks
from dermlens.training import run as run_module
from dermlens.training.recipe import Recipe

SMALL = Recipe(
    fine_tune="top",
    size_px=64,
    views=1,
    epochs=2,
    head_epochs=5,
    batch_size=16,
    train=0.4,
    select=0.2,
    calibrate=0.2,
    test=0.2,
    threads=1,
)
CLASSES = {"nevus": (150, 90, 60), "a rash": (220, 120, 120), "healthy": (230, 200, 180)}


def paint(folder: Path, per_class: int = 24, seed: int = 0) -> Path:
    """Write images of three classes that differ in colour; each file is unique."""
    rng = np.random.default_rng(seed)
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            noise = rng.normal(0, 12, (72, 96, 3))
            image = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{index}.png"), image[:, :, ::-1])
    return folder


def console() -> Console:
    """Return a console that prints to `console.file`."""
    return Console(file=io.StringIO(), width=300)


def printed(console: Console) -> str:
    text: Any = console.file
    return str(text.getvalue())


def with_tiny_network(patch: pytest.MonkeyPatch) -> None:
    """Train a network of four convolutions in place of a backbone: seconds instead of a minute."""
    patch.setattr(run_module, "open_backbone", networks.tiny_stem)
