"""Quality: each fault is found on a picture that has it, and a good picture has none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dermlens.bundle.quality import DEFAULT_LIMITS, QualityLimits, faults, measure, skin_share
from pictures import lesion


def lesion_on_skin(radius: int, size: int = 224) -> np.ndarray:
    """A dark disc on skin with some texture."""
    rng = np.random.default_rng(0)
    image = np.full((size, size, 3), (200, 160, 140), np.float32)
    cv2.circle(image, (size // 2, size // 2), radius, (90, 60, 50), -1)
    return np.clip(cv2.blur(image, (5, 5)) + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8)


def codes_of(image: np.ndarray) -> set[str]:
    return {code for code, *_ in faults(measure(image), DEFAULT_LIMITS)}


def test_a_good_picture_has_no_fault() -> None:
    assert codes_of(lesion_on_skin(50)) == set()


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (np.full((224, 224, 3), 180, np.uint8), "blank"),
        (cv2.GaussianBlur(lesion(1, (224, 224)), (0, 0), 12), "blurred"),
        ((lesion_on_skin(50) // 9).astype(np.uint8), "too_dark"),
        (np.where(np.arange(224)[:, None, None] < 120, 255, lesion_on_skin(50)).astype(np.uint8), "overexposed"),
    ],
)
def test_each_unusable_picture_is_told(image: np.ndarray, code: str) -> None:
    found = {name: unusable for name, _, unusable in faults(measure(image), DEFAULT_LIMITS)}
    assert found.get(code) is True


def test_the_size_of_the_lesion_is_roughly_right() -> None:
    shares = [measure(lesion_on_skin(radius)).lesion_share for radius in (15, 40, 80)]
    for share, radius in zip(shares, (15, 40, 80), strict=True):
        assert share == pytest.approx((radius / (112 * 0.95)) ** 2, rel=0.25)
    tiny = measure(lesion_on_skin(15))
    assert [code for code, _, _ in faults(tiny, QualityLimits(min_lesion_share=0.05))] == ["lesion_too_small"]


def test_values_and_limits_go_to_json_and_back() -> None:
    values = measure(lesion_on_skin(50)).as_dict()
    assert all(0 <= values[name] <= 1 for name in ("sharpness", "dark_share", "lesion_share", "lesion_border"))
    assert QualityLimits(**DEFAULT_LIMITS.as_dict()) == DEFAULT_LIMITS
    with pytest.raises(TypeError):
        QualityLimits(max_charm=1)


@pytest.mark.parametrize("skin", [(245, 220, 205), (150, 100, 75), (60, 40, 32), (120, 60, 110), (128, 128, 128)])
def test_skin_of_every_tone_could_be_skin_also_in_a_dark_circle_and_without_colour(skin: tuple[int, ...]) -> None:
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[40:180, 40:180] = skin
    assert skin_share(picture) > 0.95


def test_grass_sky_and_paper_are_no_skin() -> None:
    for colour in ((60, 120, 40), (90, 140, 220), (255, 255, 255)):
        assert skin_share(np.full((224, 224, 3), colour, np.uint8)) == 0.0
    assert skin_share(np.zeros((224, 224, 3), np.uint8)) == 1.0, "black says nothing"
