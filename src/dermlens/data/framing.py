"""How an upright RGB image becomes a network's square input: input specification, cropping, resizing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NoReturn, TypeAlias, get_args

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.errors import ImageError, UsageError

Pixels: TypeAlias = npt.NDArray[np.uint8]
Interpolation = Literal["area", "bilinear"]
Framing = Literal["centre_crop", "squash", "pad"]

MIN_SIDE_PX = 8
PAD_VALUE = 128  # mid-grey, near the mean that the networks subtract
PIXEL_PATH_VERSION = 1  # raise it when the same bytes would give other pixels, so that caches are made anew

_OVERSAMPLING = 2  # a reduced decode keeps at least this many source pixels per output pixel, each way
_SIZES_PX = range(MIN_SIDE_PX, 2049)
_FRAME_ASPECTS = (0.1, 10.0)


@dataclass(frozen=True)
class InputSpec:
    """How a network wants its input; saved in the bundle, used wherever an image is prepared.

    Attributes:
        size_px: side of the square input, 8 to 2048.
        interpolation: "area" averages when shrinking and is bilinear when enlarging; "bilinear" is always
            bilinear, without antialiasing, for networks that learned from such pixels.
        framing: "centre_crop" takes the largest centred square; "squash" stretches the whole image to a
            square (so `frame_aspect` makes no difference); "pad" fits the whole frame in and fills up with
            mid-grey (128).
    """

    size_px: int = 224
    interpolation: Interpolation = "area"
    framing: Framing = "centre_crop"

    def __post_init__(self) -> None:
        if type(self.size_px) is not int or self.size_px not in _SIZES_PX:
            _refuse("size_px", self.size_px, f"a whole number from {_SIZES_PX[0]} to {_SIZES_PX[-1]}")
        if self.interpolation not in get_args(Interpolation):
            _refuse("interpolation", self.interpolation, " or ".join(map(repr, get_args(Interpolation))))
        if self.framing not in get_args(Framing):
            _refuse("framing", self.framing, " or ".join(map(repr, get_args(Framing))))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """Make a specification from `as_dict()` values; `UsageError` on an unknown field or a bad value."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                _refuse("field", key, ", ".join(known))
        return cls(**values)

    def fingerprint(self) -> str:
        """Return 12 hex digits that change with any field or with `PIXEL_PATH_VERSION`; for cache keys."""
        text = json.dumps({**self.as_dict(), "pixel_path": PIXEL_PATH_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def frame(image: Pixels, spec: InputSpec, frame_aspect: float | None = None) -> Pixels:
    """Crop or pad an image to a square and resize it, in one resampling.

    An image that was squashed (`frame_aspect` differs from width / height) is framed as if it were first
    stretched back to `frame_aspect`: the part of it that belongs to the frame is cut out and resized at once.

    Args:
        image: uint8 RGB, shape (height, width, 3).
        spec: size, interpolation and framing.
        frame_aspect: width / height of the frame that the image shows, 0.1 to 10; None for square pixels.

    Returns:
        uint8 RGB, shape (spec.size_px, spec.size_px, 3), a new array.

    Raises:
        ImageError: code `bad_array`, the image has another shape or dtype.
        UsageError: `frame_aspect` is out of range.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise_bad_array(image)
    height, width = image.shape[:2]
    region = _region(width, height, spec, frame_aspect)
    cut = image[region.top : region.top + region.height, region.left : region.left + region.width]
    resized = _resize(np.ascontiguousarray(cut), region.out_width, region.out_height, spec.interpolation)
    if resized.shape[:2] == (spec.size_px, spec.size_px):
        return resized
    square = np.full((spec.size_px, spec.size_px, 3), PAD_VALUE, dtype=np.uint8)
    top, left = (spec.size_px - region.out_height) // 2, (spec.size_px - region.out_width) // 2
    square[top : top + region.out_height, left : left + region.out_width] = resized
    return square


def reduction_for(width: int, height: int, spec: InputSpec, frame_aspect: float | None) -> int:
    """Return by how much an upright image may be reduced before `frame`: 1, 2, 4 or 8.

    At least two source pixels per output pixel remain each way, so that the final resize still averages.
    """
    region = _region(width, height, spec, frame_aspect)
    ratio = min(region.width / region.out_width, region.height / region.out_height)
    return max(scale for scale in (1, 2, 4, 8) if scale == 1 or ratio >= scale * _OVERSAMPLING)


@dataclass(frozen=True)
class _Region:
    """The part of the source that is resized, and to what; all in pixels."""

    left: int
    top: int
    width: int
    height: int
    out_width: int
    out_height: int


def _region(width: int, height: int, spec: InputSpec, frame_aspect: float | None) -> _Region:
    """Where the frame's square lies in a source of width x height pixels, for each way of framing."""
    lowest, highest = _FRAME_ASPECTS
    if frame_aspect is not None and not lowest <= frame_aspect <= highest:
        raise UsageError(
            f"frame_aspect is {frame_aspect!r}. Allowed: width / height from {lowest} to {highest}, or None.",
            remedy="Use 4/3 for frames of 4:3; leave it out where pixels are square.",
        )
    size = spec.size_px
    if spec.framing == "squash":
        return _Region(0, 0, width, height, size, size)
    aspect = width / height if frame_aspect is None else frame_aspect
    share_of_width, share_of_height = min(1.0, 1 / aspect), min(1.0, aspect)  # of a frame `aspect` x 1
    if spec.framing == "pad":
        # the frame's longer side fills the square, and the shorter one its share
        out_width, out_height = max(1, round(size * share_of_height)), max(1, round(size * share_of_width))
        return _Region(0, 0, width, height, out_width, out_height)
    cut_width, cut_height = max(1, round(width * share_of_width)), max(1, round(height * share_of_height))
    return _Region((width - cut_width) // 2, (height - cut_height) // 2, cut_width, cut_height, size, size)


def _resize(image: Pixels, width: int, height: int, interpolation: Interpolation) -> Pixels:
    """Resize to width x height; the result is a new array even where nothing changes.

    "area" shrinks by averaging and enlarges by bit-exact bilinear interpolation, each axis as it needs.
    """
    if interpolation == "bilinear":
        return _as_pixels(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT))
    shrunk = min(width, image.shape[1]), min(height, image.shape[0])
    small = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk == (width, height):
        return _as_pixels(small)
    return _as_pixels(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR_EXACT))


def _as_pixels(image: npt.NDArray[Any]) -> Pixels:
    return image.astype(np.uint8, copy=False)


def _refuse(what: str, value: object, allowed: str) -> NoReturn:
    raise UsageError(
        f"Input specification: {what} is {value!r}. Allowed: {allowed}.",
        remedy="Correct it in the recipe or in the call.",
        code="input_spec",
    )


def raise_bad_array(array: npt.NDArray[Any]) -> NoReturn:
    """Raise the `ImageError` (code `bad_array`) that says what is wrong with an array and what to do."""
    if array.dtype == np.uint8:
        remedy = "Pass one image at a time, channels last."
    elif np.issubdtype(array.dtype, np.floating):
        remedy = "Values from 0 to 1: pass (array * 255).round().astype(numpy.uint8)."
    else:
        remedy = "Scale the values to 0-255 and pass array.astype(numpy.uint8)."
    raise ImageError(
        f"The array has dtype {array.dtype} and shape {array.shape}. "
        "Allowed: uint8 (height, width, 3) in RGB order, (height, width) or (height, width, 4).",
        remedy=remedy,
        code="bad_array",
    )
