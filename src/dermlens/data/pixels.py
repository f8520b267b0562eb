"""From the bytes of an image file to upright RGB: the only place that touches Pillow.

Pillow's five readers are called directly, not through `Image.open`: no other format can be reached, and the
size limits are ours (`images.py`), not Pillow's warnings.
"""

from __future__ import annotations

import logging
import warnings
from io import BytesIO
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from dermlens.data.header import Header, ImageFormat
from dermlens.errors import ImageError

Pixels: TypeAlias = npt.NDArray[np.uint8]

# Pillow reports damaged metadata (never pixels) of PNG and TIFF files as warnings and log lines. They are
# silenced once, here: `warnings.catch_warnings` around each image is not safe among threads.
logging.getLogger("PIL").addHandler(logging.NullHandler())
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.(Png|Tiff)ImagePlugin")

_WHITE = (255, 255, 255, 255)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _JpegReader(JpegImageFile):
    """Pillow's JPEG reader without its search of EXIF for a print resolution; it warns of damaged EXIF."""

    def _read_dpi_from_exif(self) -> None:
        return


_READERS: dict[ImageFormat, type[ImageFile.ImageFile]] = {
    "JPEG": _JpegReader,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}


def decode_pixels(data: bytes, header: Header, reduction: int, name: str) -> Pixels:
    """Decode an image file whose header has been checked.

    Args:
        data: the whole file.
        header: `read_header(data)`; a file that turns out to have another size is refused undecoded.
        reduction: decode a JPEG at 1/reduction of its size (1, 2, 4 or 8); other formats ignore it.
        name: how to call the image in an error.

    Returns:
        uint8 RGB, shape (height, width, 3), upright, a new array.

    Raises:
        ImageError: `truncated` or `unreadable`.
    """
    try:
        return _decode(data, header, reduction)
    except Exception as error:  # a decoder may raise anything at hostile bytes, and all of it means the same
        _raise_undecodable(name, header, error)


def rgb_pixels(image: Image.Image) -> Pixels:
    """Bring a Pillow image of any mode to uint8 RGB (height, width, 3); transparency is laid over white.

    16-bit values keep their high byte. 32-bit and float greys have no agreed scale: they are read on the
    smallest of 0-1 (float only), 0-255 and 0-65535 that holds all their values; `ValueError` when none does.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.repeat(_eight_bit(np.asarray(image))[:, :, np.newaxis], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return np.array(image.convert("RGB"))


def _decode(data: bytes, header: Header, reduction: int) -> Pixels:
    image: Image.Image
    with _READERS[header.format](BytesIO(data)) as opened:
        promised = header.upright_size_px if header.format == "TIFF" else (header.width_px, header.height_px)
        if opened.size != promised:
            raise ValueError(f"its header says {promised} pixels, its decoder {opened.size}")
        if reduction > 1:
            opened.draft(None, (header.width_px // reduction, header.height_px // reduction))
        opened.load()
        image = opened
        if header.format != "TIFF" and header.orientation in _UPRIGHT:  # Pillow turns a TIFF by itself
            image = image.transpose(_UPRIGHT[header.orientation])
        return rgb_pixels(image)


def _eight_bit(grey: npt.NDArray[Any]) -> Pixels:
    """Scale 16-bit, 32-bit or float grey values to uint8."""
    if grey.dtype.itemsize == 2:
        return (grey >> 8).astype(np.uint8)
    low, high = float(grey.min()), float(grey.max())
    if not (low >= 0 and high <= 65535):  # also true for NaN
        raise ValueError(f"grey values run from {low:g} to {high:g}; save it with 8 or 16 bits a channel")
    if grey.dtype.kind == "f" and high <= 1:
        return np.round(grey * 255).astype(np.uint8)
    return np.round(grey if high <= 255 else np.floor(grey / 256)).astype(np.uint8)


def _raise_undecodable(name: str, header: Header, error: Exception) -> NoReturn:
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, EOFError) or "truncated" in words.lower():
        raise ImageError(
            f"{name} is cut off: its {header.format} data ends before all pixels are there.",
            remedy="Copy or download it again.",
            code="truncated",
        ) from error
    raise ImageError(
        f"{name} is a {header.format} that cannot be decoded ({words}).",
        remedy="Open it in an image viewer and save it again as JPEG or PNG, or use another copy.",
        code="unreadable",
    ) from error
