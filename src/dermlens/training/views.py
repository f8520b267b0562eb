"""Plain and augmented views of an image.

Augmentation fits lesions: they have no up and no left, lamps and cameras differ in colour and brightness, and archives
differ in sharpness and compression. A network could learn the archive from these, and with it the diagnosis, so they
are evened out. Each view is a pure function of image, seed and view index: a cache can be rebuilt bit for bit.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from dermlens.data.images import InputSpec, load_image
from dermlens.data.records import Record
from dermlens.evaluation.overlays import dark_corners, hair, ink, ruler

AUGMENTATION_VERSION = 1  # raise it with any change to the views, so that cached features are made again
LARGER = 1.25  # augmented views start from a copy this much larger, so that zooming in does not blur


def plain_view(record: Record, spec: InputSpec) -> np.ndarray:
    """Return the unaugmented view, uint8 (size, size, 3): exactly what a prediction sees."""
    return load_image(record.path, spec, frame_aspect=record.frame_aspect)


def views(record: Record, spec: InputSpec, *, count: int, seed: int, key: str, artefacts: float = 0.0) -> np.ndarray:
    """Return view 0 (plain) and `count` augmented views, uint8 (1 + count, size, size, 3).

    Args:
        key: content hash of the file; with `seed` and the index it fixes each view.
        artefacts: share of the augmented views into which an artefact is drawn; nothing else in them changes.
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
        view = _artefact(view, artefacts, rng.spawn(1)[0])  # its own stream: nothing else changes
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
    return np.asarray(np.linalg.inv(to_yiq) @ turn @ to_yiq, np.float64)


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
