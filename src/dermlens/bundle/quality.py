"""Can this image be read at all? Focus, exposure and the place of the lesion, from the pixels that the network gets.

The limits are never stricter than `DEFAULT_LIMITS`, and are widened so that at most 1 in 200 of the images that the
model was calibrated on is beyond each of them (`dermlens.evaluation.fit_trust`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.bundle.probabilities import Facts
from dermlens.text import percent

LOOK_PX = 128
DARK, BRIGHT = 40, 250
SKIN_PX, LIT, LEAST_LIT, GREY_STEP, GREY_MOST = 64, 30, 0.05, 4, 220


@dataclass(frozen=True)
class Quality:
    """How an image looks at 128 x 128 pixels, framed as the network sees it.

    Attributes:
        sharpness: which share of the differences between neighbours a 9-pixel mean takes away, 0 to 1 (after Crete et
            al. 2007, doi 10.1117/12.702790); what is blurred already loses little.
        contrast: standard deviation of grey, 0 to 128.
        brightness: mean grey, 0 to 255.
        dark_share, bright_share: share of pixels below grey 40, and of pixels with every channel at 250 or more.
        lesion_share: share of the inscribed circle that is darker than Otsu's threshold; a rough size of the lesion.
        lesion_border: share of the circle's rim that is so; near 1 the lesion extends beyond the image.
        skin_share: share of the lit pixels that could be skin.
    """

    sharpness: float
    contrast: float
    brightness: float
    dark_share: float
    bright_share: float
    lesion_share: float
    lesion_border: float
    skin_share: float

    def as_dict(self) -> dict[str, float]:
        """Return the values, rounded, for JSON."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


class QualityLimits(Facts, frozen=True, omit_defaults=False):
    """What an image may look like; beyond the first five it is unusable, beyond the others it is doubtful."""

    min_sharpness: float = 0.3
    min_contrast: float = 4.0
    min_brightness: float = 50.0
    max_dark_share: float = 0.6
    max_bright_share: float = 0.25
    min_lesion_share: float = 0.01
    max_lesion_border: float = 0.9


DEFAULT_LIMITS = QualityLimits()


def measure(pixels: npt.NDArray[np.uint8]) -> Quality:
    """Measure one image, uint8 RGB (height, width, 3)."""
    small = cv2.resize(pixels, (LOOK_PX, LOOK_PX), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)
    mean, deviation = cv2.meanStdDev(grey)
    share, border = _lesion(grey)
    weakest = np.minimum(np.minimum(small[..., 0], small[..., 1]), small[..., 2])  # many times faster than min(axis=2)
    return Quality(
        sharpness=sharpness(grey.astype(np.float32)),
        contrast=float(deviation[0, 0]),
        brightness=float(mean[0, 0]),
        dark_share=float(np.count_nonzero(grey < DARK)) / grey.size,
        bright_share=float(np.count_nonzero(weakest >= BRIGHT)) / grey.size,
        lesion_share=share,
        lesion_border=border,
        skin_share=skin_share(pixels),
    )


def faults(quality: Quality, limits: QualityLimits) -> list[tuple[str, str, bool]]:
    """Return (code, text, unusable) for everything that is wrong with an image, the worst first."""
    if quality.contrast < limits.min_contrast:
        return [("blank", "The picture is nearly one colour.", True)]
    found = []
    if quality.sharpness < limits.min_sharpness:
        found.append(("blurred", "The picture is out of focus: it shows hardly any detail.", True))
    if quality.brightness < limits.min_brightness or quality.dark_share > limits.max_dark_share:
        found.append(("too_dark", "The picture is too dark.", True))
    if quality.bright_share > limits.max_bright_share:
        found.append(("overexposed", f"{percent(quality.bright_share)} of the picture is white.", True))
    if quality.lesion_share < limits.min_lesion_share:
        found.append(("lesion_too_small", "The lesion fills very little of the picture: take one from nearer.", False))
    if quality.lesion_border > limits.max_lesion_border:
        found.append(
            ("lesion_cut_off", "The lesion seems to reach beyond the picture: take one that shows all of it.", False)
        )
    return found


def sharpness(grey: npt.NDArray[np.float32]) -> float:
    """Return which share of the differences between neighbours a 9-pixel mean takes away, 0 to 1."""
    before = _differences(grey)
    return 1 - _differences(cv2.blur(grey, (9, 9))) / before if before else 0.0


def _differences(grey: npt.NDArray[Any]) -> float:
    return float(cv2.norm(grey[1:], grey[:-1], cv2.NORM_L1) + cv2.norm(grey[:, 1:], grey[:, :-1], cv2.NORM_L1))


def _circles() -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    y, x = np.indices((LOOK_PX, LOOK_PX)) - (LOOK_PX - 1) / 2
    radius = np.hypot(x, y) / (LOOK_PX / 2)
    return radius < 0.95, (radius >= 0.85) & (radius < 0.95)


_INSIDE, _RIM = _circles()


def _lesion(grey: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Return the share of the circle, and of its rim, that is darker than Otsu's threshold."""
    smooth = cv2.blur(grey, (5, 5))
    threshold, _ = cv2.threshold(smooth[_INSIDE], 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    dark = smooth <= threshold
    return float(dark[_INSIDE].mean()), float(dark[_RIM].mean())


def skin_share(pixels: npt.NDArray[np.uint8]) -> float:
    """Return the share of the lit RGB pixels (height, width, 3) that could be skin, 0 to 1.

    Skin of every tone is redder than green; grey has no colour to judge by, and counts. What is black, as around a
    dermatoscope's circle, says nothing; where hardly anything is lit, the share is 1.
    """
    small = cv2.resize(pixels, (SKIN_PX, SKIN_PX), interpolation=cv2.INTER_AREA).astype(np.int16)
    red, green, blue = small[..., 0], small[..., 1], small[..., 2]
    lit = small.max(axis=2) >= LIT
    if (n := int(np.count_nonzero(lit))) < LEAST_LIT * lit.size:
        return 1.0
    grey = (np.abs(red - green) <= GREY_STEP) & (np.abs(green - blue) <= GREY_STEP) & (green <= GREY_MOST)
    return float(np.count_nonzero(((red > green) | grey) & lit)) / n
