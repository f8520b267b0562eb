"""Laid over each other: a crop, a tilt and a mirror image are found again with their transform; strangers are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import pictures
from dermlens.audit.geometry import SPEC, Sketch, mirror, overlay, sketch
from dermlens.audit.lookalikes import is_same
from dermlens.data.images import load_image


def seen(image: np.ndarray) -> Sketch:
    return sketch(load_image(np.ascontiguousarray(image), SPEC))


def tilted(image: np.ndarray, degrees: float) -> np.ndarray:
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT)


@pytest.mark.parametrize("seed", range(4))
def test_a_crop_tells_its_scale(seed: int) -> None:
    image = pictures.detailed(seed)
    edge = round(0.1 * len(image))
    lies = overlay(seen(image[edge:-edge, edge:-edge]), seen(image))
    assert lies is not None and is_same(lies) and not lies.mirrored
    assert lies.scale == pytest.approx(0.8, abs=0.02) and abs(lies.angle_deg) < 1
    assert lies.overlap == pytest.approx(0.64, abs=0.04)


@pytest.mark.parametrize("degrees", [-15, 5, 10, 90])
def test_a_tilt_tells_its_angle(degrees: float) -> None:
    image = pictures.detailed(7)
    lies = overlay(seen(image), seen(tilted(image, degrees)))
    assert lies is not None and is_same(lies)
    assert lies.angle_deg == pytest.approx(-degrees, abs=1) and lies.scale == pytest.approx(1, abs=0.02)


def test_a_mirror_image_is_one_too() -> None:
    image = pictures.detailed(3)
    edge = round(0.06 * len(image))
    lies = overlay(seen(image[edge:-edge, edge:-edge]), seen(image[:, ::-1]))
    assert lies is not None and lies.mirrored and is_same(lies)
    again = mirror(mirror(seen(image)))
    assert np.allclose(again.points, seen(image).points, atol=1e-3)
    assert (again.descriptors == seen(image).descriptors).all()


def test_strangers_and_empty_pictures_are_none() -> None:
    sketches = [seen(pictures.detailed(seed)) for seed in range(6)]
    pairs = [overlay(one, other) for i, one in enumerate(sketches) for other in sketches[:i]]
    assert not any(lies is not None and is_same(lies) for lies in pairs)
    grey = seen(np.full((200, 200, 3), 128, np.uint8))
    assert overlay(grey, sketches[0]) is None and overlay(grey, grey) is None


def test_what_agrees_only_in_part_is_another_photograph() -> None:
    image = pictures.detailed(1)
    other = image.copy()
    other[: len(image) // 3] = pictures.detailed(2)[: len(image) // 3]
    lies = overlay(seen(image), seen(other))
    assert lies is not None and lies.worst < 0.6 and not is_same(lies)
