"""Small pictures that look a little like lesions: each seed another one, smooth enough to survive compression."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def lesion(seed: int, size: tuple[int, int] = (120, 160)) -> np.ndarray:
    """Return a blurred random blob on skin, uint8 RGB (height, width, 3), without any symmetry."""
    rng = np.random.default_rng(seed)
    rough = rng.normal(0, 1, (9, 9, 3)).astype(np.float32)
    smooth = cv2.resize(rough, size[::-1], interpolation=cv2.INTER_CUBIC)
    image = np.array([190, 150, 130], np.float32) + 38 * smooth + rng.normal(0, 12, (*size, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def save(path: Path, image: np.ndarray, quality: int = 92) -> Path:
    """Write RGB pixels in the format of the path's extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return path


def spoiled_set(root: Path) -> Path:
    """Write a data set with Train and Test in which one of each thing is wrong; the tests know which.

    20 pictures of each of NV and MEL in Train and 6 in Test; then Train/NV/both.png = Train/MEL/both.png,
    Train/NV/leak.png = Test/NV/leak.png, Train/NV/small.jpg is Train/NV/0.png made smaller,
    Train/MEL/broken.jpg cannot be read.
    """
    for place, (split, code) in enumerate((s, c) for s in ("Train", "Test") for c in ("NV", "MEL")):
        for index in range(20 if split == "Train" else 6):
            save(root / split / code / f"{index}.png", lesion(1000 * place + index))
    for number, (one, other) in enumerate((("Train/MEL", "Train/NV"), ("Train/NV", "Test/NV"))):
        for folder in (one, other):
            save(root / folder / f"{('both', 'leak')[number]}.png", lesion(9000 + number))
    save(root / "Train/NV/small.jpg", cv2.resize(lesion(0), (100, 75), interpolation=cv2.INTER_AREA), 70)
    (root / "Train/MEL/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much more")
    return root


def detailed(seed: int, size_px: int = 240) -> np.ndarray:
    """Return spots and lines on skin, uint8 RGB, with structure at every scale that two photographs would not share."""
    rng = np.random.default_rng(seed)
    image = np.full((size_px, size_px, 3), (200, 160, 140), np.uint8)
    for _ in range(140):
        centre = tuple(int(v) for v in rng.integers(0, size_px, 2))
        axes = tuple(int(v) for v in rng.integers(2, 12, 2))
        colour = tuple(int(v) for v in rng.integers(60, 230, 3))
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)
    return cv2.GaussianBlur(image, (0, 0), 1.2)
