"""Synthetic artefacts for paired tests: the same image with ink, ruler, hair, other light, or without its lesion.

Dermatologists' ink raised a market-approved network's melanoma scores (Winkler et al. 2019,
doi 10.1001/jamadermatol.2019.1735), scale bars did too (Winkler et al. 2021, doi 10.1016/j.ejca.2020.12.010), and
networks still distinguish classes when the lesion is covered (Bissoto et al. 2019, arXiv:1904.08818). All work on uint8
RGB (size, size, 3) as the network sees it; the same generator state draws the same artefact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Change = Callable[[Pixels, np.random.Generator], Pixels]

INK = (96, 42, 140)  # gentian violet
COVER = 0.7  # side of the square that hides the lesion, as in Bissoto et al.
RING = 0.1  # width of the border that is left, as a share of the side


def ink(image: Pixels, generator: np.random.Generator, *, colour: Sequence[int] = INK) -> Pixels:
    """Draw two strokes of ink near the border."""
    size = image.shape[0]
    layer = image.copy()
    for _ in range(2):
        angle = generator.uniform(0, 2 * np.pi)
        turn = angle + np.linspace(0, 0.5, 12)
        radius = size * (0.44 + generator.normal(0, 0.008, 12))
        line = np.stack([size / 2 + radius * np.cos(turn), size / 2 + radius * np.sin(turn)], axis=1)
        cv2.polylines(layer, [np.round(line).astype(np.int32)], False, tuple(colour), max(2, size // 45), cv2.LINE_AA)
    drawn = np.any(layer != image, axis=2, keepdims=True)
    return np.where(drawn, _pixels(image * 0.25 + layer * 0.75), image)


def ruler(image: Pixels, generator: np.random.Generator) -> Pixels:
    """Draw a scale bar with ticks along one side."""
    size = image.shape[0]
    turns = int(generator.integers(4))
    result = np.rot90(image, turns).copy()  # drawn on below
    base = size - max(3, size // 40)
    cv2.line(result, (0, base), (size, base), (25, 25, 25), 1)
    for number, x in enumerate(range(size // 30, size, max(4, size // 24))):
        length = size // 14 if number % 5 == 0 else size // 26
        cv2.line(result, (x, base), (x, base - length), (25, 25, 25), 1)
    return np.ascontiguousarray(np.rot90(result, -turns))


def dark_corners(image: Pixels, generator: np.random.Generator, *, radius: tuple[float, float] = (0.5, 0.56)) -> Pixels:
    """Leave a lit disc, as a dermatoscope's tube does; `radius` is drawn between the two, as a share of the side."""
    size = image.shape[0]
    y, x = np.indices((size, size)) - (size - 1) / 2
    edge = size * generator.uniform(*radius)
    light = np.clip((edge - np.hypot(x, y)) / (0.02 * size) + 0.5, 0, 1)[:, :, None]
    return _pixels(image * light + 8 * (1 - light))


def hair(image: Pixels, generator: np.random.Generator, *, count: int = 10) -> Pixels:
    """Draw dark curved hairs across the image."""
    size = image.shape[0]
    layer = image.copy()
    for _ in range(count):
        ends = generator.uniform(0, size, (3, 2))
        t = np.linspace(0, 1, 24)[:, None]
        curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
        shade = tuple(int(v) for v in generator.integers(15, 60, 3))
        cv2.polylines(layer, [np.round(curve).astype(np.int32)], False, shade, 1 + size // 300, cv2.LINE_AA)
    return layer


def warm(image: Pixels, _: np.random.Generator) -> Pixels:
    """Simulate a warm lamp."""
    return _pixels(image * np.array([1.1, 1.0, 0.85]))


def cool(image: Pixels, _: np.random.Generator) -> Pixels:
    """Simulate a cool lamp."""
    return _pixels(image * np.array([0.88, 1.0, 1.12]))


def jpeg(image: Pixels, generator: np.random.Generator) -> Pixels:
    """Compress strongly: JPEG of quality 20."""
    _, code = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 20])
    decoded = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[:, :, ::-1])


def blur(image: Pixels, _: np.random.Generator) -> Pixels:
    """Blur the image slightly: a Gaussian of 1.5 px at 224 px."""
    return cv2.GaussianBlur(image, (0, 0), 1.5 * image.shape[0] / 224).astype(np.uint8)


def rotation(image: Pixels, _: np.random.Generator) -> Pixels:
    """Turn the image by 90 degrees, which loses nothing."""
    return np.ascontiguousarray(np.rot90(image))


def lesion_erased(image: Pixels, _: np.random.Generator) -> Pixels:
    """Hide the middle square, 70 % of the side, under the mean colour of what is left."""
    inside = _square(image.shape[0], COVER)
    result = image.copy()
    result[inside] = image[~inside].mean(axis=0).astype(np.uint8)
    return result


def border_only(image: Pixels, _: np.random.Generator) -> Pixels:
    """Keep the outermost tenth; the rest is mid-grey."""
    result = image.copy()
    result[_square(image.shape[0], 1 - 2 * RING)] = 128
    return result


ARTEFACTS: dict[str, Change] = {
    "ink marks": ink,
    "ruler": ruler,
    "dark corners": dark_corners,
    "hair": hair,
    "warm light": warm,
    "cool light": cool,
    "JPEG quality 20": jpeg,
    "blur": blur,
    "rotation by 90 degrees": rotation,
}
WITHOUT_LESION: dict[str, Change] = {"lesion erased": lesion_erased, "border only": border_only}


def _square(size: int, share: float) -> npt.NDArray[np.bool_]:
    """A mask (size, size) of the middle square with `share` of the side."""
    edge = round(size * (1 - share) / 2)
    mask = np.zeros((size, size), bool)
    mask[edge : size - edge, edge : size - edge] = True
    return mask


def _pixels(values: npt.NDArray[np.floating]) -> Pixels:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
