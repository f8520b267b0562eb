"""Records -> plain and augmented views, and the order in which a training draws them.

Augmentation fits lesions: they have no up and no left, lamps and cameras differ in colour and brightness, and archives
differ in sharpness and compression, which would betray the source of an image (and with it the diagnosis) if it were
not evened out. Each view is a pure function of (image, seed, view index), so a cache can be rebuilt bit for bit.

Images that are decoded once: the copies from which fresh views start, in a memory-mapped file.

A training on fresh views draws each image some ten times, and a phone's photograph takes longer to decode than to
augment. So the first draw of an image keeps its copy, and the later ones only copy bytes. The file is filled as images
are drawn, and one that was begun is gone on with; a checksum tells what was written whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from dermlens.data.images import InputSpec, load_image
from dermlens.data.records import Record
from dermlens.evaluation.overlays import dark_corners, hair, ink, ruler

AUGMENTATION_VERSION = 1  # raise it with any change to the views, so that cached features are made anew
LARGER = 1.25  # augmented views start from a copy this much larger, so that zooming in does not blur


def plain_view(record: Record, spec: InputSpec) -> np.ndarray:
    """Return the unaugmented view, uint8 (size, size, 3): exactly what a prediction sees."""
    return load_image(record.path, spec, frame_aspect=record.frame_aspect)


def views(record: Record, spec: InputSpec, *, count: int, seed: int, key: str, artefacts: float = 0.0) -> np.ndarray:
    """Return view 0 (plain) and `count` augmented views, uint8 (1 + count, size, size, 3).

    Args:
        key: content hash of the file; with `seed` and the index it fixes each view.
        artefacts: share of the augmented views with an artefact drawn in; all else in them is as without.
    """
    result = np.empty((1 + count, spec.size_px, spec.size_px, 3), np.uint8)
    result[0] = plain_view(record, spec)
    if count:
        source = larger_copy(record, spec)
        for index in range(1, 1 + count):
            result[index] = augment(source, spec.size_px, _generator(seed, key, index), artefacts)
    return result


def fresh_view(
    source: np.ndarray, size_px: int, *, index: int, seed: int, key: str, artefacts: float = 0.0
) -> np.ndarray:
    """Return the view of that index (1 or more) of a `larger_copy`, uint8 (size, size, 3), as `views` would hold it."""
    return augment(source, size_px, _generator(seed, key, index), artefacts)


def larger(spec: InputSpec) -> InputSpec:
    """Return the input at the size from which augmented views start."""
    return replace(spec, size_px=round(spec.size_px * LARGER))


def larger_copy(record: Record, spec: InputSpec) -> np.ndarray:
    """Return what augmented views start from, uint8 (side, side, 3): the image decoded and framed at `larger(spec)`."""
    return load_image(record.path, larger(spec), frame_aspect=record.frame_aspect)


def _generator(seed: int, key: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, int(key[:16], 16), index])


def augment(source: np.ndarray, size_px: int, rng: np.random.Generator, artefacts: float = 0.0) -> np.ndarray:
    """Return one random view of `source` (uint8 RGB square), uint8 (size_px, size_px, 3)."""
    view = _geometry(source, size_px, rng)
    if artefacts > 0:
        view = _artefact(view, artefacts, rng.spawn(1)[0])  # a stream of its own: the rest stays as without
    view = _colour(view, rng)
    return _compression(view, rng)


def _geometry(source: np.ndarray, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Any rotation, flip, zoom 0.75-1.1 of the field, stretch up to 1.2, shift up to 8 % of the side."""
    side = source.shape[0]
    angle = rng.uniform(0, 2 * np.pi)
    zoom = side / size_px * rng.uniform(0.75, 1.1)
    stretch = np.exp(rng.uniform(-0.18, 0.18) / 2)
    flip = rng.choice((-1.0, 1.0))
    shift = rng.uniform(-0.08, 0.08, 2) * side
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.diag([zoom * stretch * flip, zoom / stretch])
    centre = np.array([(size_px - 1) / 2] * 2)
    offset = np.array([(side - 1) / 2] * 2) + shift - linear @ centre
    matrix = np.hstack([linear, offset[:, None]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped: np.ndarray = cv2.warpAffine(
        source, matrix, (size_px, size_px), flags=flags, borderMode=cv2.BORDER_REFLECT_101
    )
    return warped


def _artefact(view: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """In that share of the views draw a dark rim, hair, ink or a ruler, more varied than the controls draw them."""
    if rng.random() >= share:
        return view
    kind = int(rng.integers(4))
    if kind == 0:
        return dark_corners(view, rng, radius=(0.48, 0.64))
    if kind == 1:
        return hair(view, rng, count=int(rng.integers(3, 21)))
    if kind == 2:
        return ink(view, rng, colour=rng.integers(0, 160, 3).tolist())
    return ruler(view, rng)


def _colour(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lamp colour, brightness, contrast and gamma through one table; saturation and hue through one 3x3 matrix."""
    gamma = np.exp(rng.uniform(-0.25, 0.25))
    contrast = rng.uniform(0.8, 1.2)
    brightness = rng.uniform(-0.1, 0.1)
    gains = rng.uniform(0.91, 1.09, 3)
    level = np.linspace(0, 1, 256)[:, None] ** gamma
    table = ((level - 0.5) * contrast + 0.5 + brightness) * gains
    view = cv2.LUT(view, np.clip(table * 255 + 0.5, 0, 255).astype(np.uint8).reshape(256, 1, 3))
    return cv2.transform(view, _hue_saturation(rng.uniform(-0.08, 0.08), rng.uniform(0.75, 1.25)))


def _hue_saturation(hue_rad: float, saturation: float) -> np.ndarray:
    """Return the 3x3 RGB matrix that turns chroma by `hue_rad` in the YIQ plane and scales it by `saturation`."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    turn = np.eye(3)
    cos, sin = np.cos(hue_rad), np.sin(hue_rad)
    turn[1:, 1:] = saturation * np.array([[cos, -sin], [sin, cos]])
    matrix: np.ndarray = np.linalg.inv(to_yiq) @ turn @ to_yiq
    return matrix


def _compression(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In half of the views lose resolution (down to 0.5) and in half of them JPEG quality (25-90)."""
    size_px = view.shape[0]
    if rng.random() < 0.5:
        small = max(8, round(size_px * rng.uniform(0.5, 1.0)))
        view = cv2.resize(view, (small, small), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        quality = int(rng.integers(25, 91))
        _, code = cv2.imencode(".jpg", view[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        view = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))[:, :, ::-1]
    if view.shape[0] != size_px:
        view = cv2.resize(view, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(view)


def sampling_weights(labels: np.ndarray, classes: int, class_balance: float) -> np.ndarray:
    """Return the probability with which each image is drawn, float64 (n,), sums to 1.

    An image of a class with n_c images has weight n_c ** -class_balance: 0 keeps the data's own frequencies, 1 draws
    all classes equally often.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    weights = np.maximum(counts, 1)[labels] ** -class_balance
    return weights / weights.sum()


def effective_prior(labels: np.ndarray, classes: int, class_balance: float) -> np.ndarray:
    """Return the class frequencies that the network meets under `sampling_weights`, float64 (classes,)."""
    return np.bincount(labels, sampling_weights(labels, classes, class_balance), minlength=classes)


@dataclass(frozen=True)
class Draw:
    """What one step learns from: rows of images, a view of each, and the share that mixup leaves of each."""

    rows: np.ndarray
    views: np.ndarray
    mix: np.ndarray


class Draws:
    """The order in which images are drawn: each step's draw follows from seed and step alone.

    So a training that goes on in the middle draws what an uninterrupted one would have drawn.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        classes: int,
        class_balance: float,
        view_count: int,
        batch_size: int,
        mixup: float,
        seed: int,
    ) -> None:
        self._until = np.cumsum(sampling_weights(labels, classes, class_balance))
        self._until[-1] = 1.0
        self._view_count, self._batch_size, self._mixup, self._seed = view_count, batch_size, mixup, seed

    def at(self, step: int) -> Draw:
        """Return the draw of a step: int64 rows and views and float32 mix, each (batch_size,)."""
        rng = np.random.default_rng([self._seed, 0xD7A5, step])
        rows = np.searchsorted(self._until, rng.random(self._batch_size), side="right")
        views = rng.integers(0, self._view_count, size=self._batch_size)
        mix = np.ones(self._batch_size, np.float32)
        if self._mixup > 0:
            drawn = rng.beta(self._mixup, self._mixup, self._batch_size)
            mix = np.maximum(drawn, 1 - drawn).astype(np.float32)
        return Draw(rows, views, mix)


MOST_OF_FREE = 0.5  # a cache that would take more of the free space is not made: the rest of a run needs some as well


def decoded(
    folder: Path, records: Sequence[Record], hashes: Sequence[str], spec: InputSpec, console: Console
) -> Callable[[int], np.ndarray]:
    """Return row -> `larger_copy` of that record, uint8 (side, side, 3), decoded at its first call alone.

    The function may be called by several threads at once. Without the space for `pixels.npy` in `folder`, or where that
    cannot be written, it decodes at every call, and `console` says so.

    Args:
        hashes: content hash of each file; with frame aspects and `spec` they say whether an earlier file holds.
    """

    def anew(row: int) -> np.ndarray:
        return larger_copy(records[row], spec)

    side = larger(spec).size_px
    try:
        opened = _open(folder, _key(records, hashes, spec), (len(records), side, side, 3))
    except OSError as error:
        console.print(f"Images are decoded in every epoch: {error.strerror or error}.", highlight=False, soft_wrap=True)
        return anew
    pixels, sums = opened
    checked = np.zeros(len(records), bool)

    def once(row: int) -> np.ndarray:
        if not checked[row]:
            if sums[row] != zlib.crc32(pixels[row]):
                pixels[row] = anew(row)
                sums[row] = zlib.crc32(pixels[row])
            checked[row] = True
        return np.asarray(pixels[row])

    return once


def _key(records: Sequence[Record], hashes: Sequence[str], spec: InputSpec) -> str:
    facts = (list(hashes), [record.frame_aspect for record in records], larger(spec).fingerprint())
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _open(folder: Path, key: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mapped pixels, uint8 of that shape, and the checksum of each row, uint32 (n,), 0 where nothing is yet;
    those of an earlier file if its key is the same.

    Raises:
        OSError: no space, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, marks, noted = folder / "pixels.npy", folder / "sums.npy", folder / "pixels.json"
    if (earlier := _earlier(data, marks, noted, key)) is not None:
        return earlier
    noted.unlink(missing_ok=True)  # first, so that no older key can vouch for the new file
    data.unlink(missing_ok=True)
    need, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if need > MOST_OF_FREE * free:
        raise OSError(f"a copy of each would take {need / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free")
    sums = np.lib.format.open_memmap(marks, mode="w+", dtype=np.uint32, shape=shape[:1])
    pixels = np.lib.format.open_memmap(data, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # take the space now: a mapped file on a disk that fills up kills the process
        with data.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, data.stat().st_size)
    noted.write_text(json.dumps({"key": key}), encoding="utf-8")
    return pixels, sums


def _earlier(data: Path, marks: Path, noted: Path, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what an earlier run has left; None where that is of another key, incomplete or damaged."""
    try:
        if json.loads(noted.read_text(encoding="utf-8"))["key"] != key:
            return None
        return np.load(data, mmap_mode="r+"), np.load(marks, mmap_mode="r+")
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
