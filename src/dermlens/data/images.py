"""The only pixel path: a path, bytes or an array become uint8 RGB; the same bytes always give the same array.

Training, evaluation, command line, batch and server all open images here (`header.py` reads the size before anything is
decoded, `framing.py` crops and resizes). The result depends on the bytes, on the `InputSpec` and on `frame_aspect`,
never on who calls. Colour profiles (ICC) are ignored: all is sRGB.

Only this module touches Pillow. Its five readers are called directly, not through `Image.open`: no other format can be
reached, and the size limits are ours, not Pillow's warnings.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from dermlens.data.framing import MIN_SIDE_PX, raise_bad_array, reduction_for
from dermlens.data.framing import InputSpec as InputSpec
from dermlens.data.framing import Pixels as Pixels
from dermlens.data.framing import frame as frame
from dermlens.data.header import Header, ImageFormat, read_header
from dermlens.errors import ImageError, UsageError

Source: TypeAlias = str | Path | bytes

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})
UNREAD_IMAGE_EXTENSIONS = frozenset({".heic", ".heif", ".gif", ".avif", ".jp2", ".dcm", ".dng"})
"""Images all the same: an answer is due, and it says what to do."""
DEFAULT_MAX_BYTES = 20_000_000
DEFAULT_MAX_PIXELS = 50_000_000

Hold: TypeAlias = Callable[[int], AbstractContextManager[Any]]

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


def load_image(
    source: Source | npt.NDArray[Any],
    spec: InputSpec,
    *,
    frame_aspect: float | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    hold: Hold = nullcontext,
) -> Pixels:
    """Open an image and prepare it for a network.

    Args:
        source: a path, the bytes of an image file, or a uint8 array of shape (height, width, 3) in RGB order,
            (height, width) grey or (height, width, 4) RGBA.
        spec: size, interpolation and framing.
        frame_aspect: width / height of the camera's frame for a file that was squashed to another shape;
            None where pixels are square. See `frame`.
        max_bytes: largest file, in bytes.
        max_pixels: largest width x height, by the file's header.
        hold: given width x height, a context in which the file is decoded; it may wait for memory.

    Returns:
        uint8 RGB, shape (spec.size_px, spec.size_px, 3), a new array.

    Raises:
        ImageError: see `decode`; for arrays, code `bad_array` or `too_small`.
    """
    if isinstance(source, np.ndarray):
        return frame(rgb_from_array(source), spec, frame_aspect)
    data, header, name = _checked(source, max_bytes, max_pixels)
    with hold(header.width_px * header.height_px):
        return frame(_decoded(data, header, name, spec, frame_aspect), spec, frame_aspect)


def decode(
    source: Source,
    *,
    spec: InputSpec | None = None,
    frame_aspect: float | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Pixels:
    """Decode a JPEG, PNG, WebP, BMP or TIFF, recognised by content, into upright RGB.

    The EXIF orientation is applied. Of an animation the first frame is read. Transparency is laid over white.
    16-bit values keep their high byte; for 32-bit and float greys see `rgb_pixels`. With `spec`, a
    large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as far as two source pixels per output pixel remain
    each way; that depends on header, `spec` and `frame_aspect` alone.

    Args:
        source, max_bytes, max_pixels: as for `load_image`; limits are checked before the file is read or decoded. TIFF
            and WebP stay below Pillow's own limit (89 million pixels).
        spec: what the pixels are for; None decodes at full size.
        frame_aspect: as for `frame`; only used to choose the reduced scale.

    Returns:
        uint8 RGB, shape (height, width, 3), upright.

    Raises:
        ImageError: with code `not_found`, `is_a_directory`, `empty_file`, `too_many_bytes`,
            `unsupported_format`, `too_many_pixels`, `too_small`, `truncated` or `unreadable`.
    """
    return _decoded(*_checked(source, max_bytes, max_pixels), spec, frame_aspect)


def _checked(source: Source, max_bytes: int, max_pixels: int) -> tuple[bytes, Header, str]:
    """Return (bytes, header, what messages call it) of a file within the limits."""
    name = _name(source)
    data = read_bytes(source, max_bytes=max_bytes)
    header = read_header(data, name)
    _check_size(header, name, max_pixels)
    return data, header, name


def _decoded(data: bytes, header: Header, name: str, spec: InputSpec | None, frame_aspect: float | None) -> Pixels:
    reduction = 1
    if spec is not None and header.format == "JPEG":
        reduction = reduction_for(*header.upright_size_px, spec, frame_aspect)
    try:
        return _decode(data, header, reduction)
    except Exception as error:  # a decoder may raise anything at hostile bytes, and all of it means the same
        _raise_undecodable(name, header, error)


def read_bytes(source: Source, *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """Read an image file whole, at most `max_bytes` of it; bytes are checked and passed on.

    Raises:
        ImageError: `not_found`, `is_a_directory`, `empty_file`, `too_many_bytes`, or `unreadable` (no
            permission, not a regular file).
    """
    name = _name(source)
    if isinstance(source, bytes):
        data, size = source, len(source)
    else:
        data, size = _read_file(Path(source), name, max_bytes)
    if size == 0:
        raise ImageError(f"{name} is empty (0 bytes).", remedy="Copy or download it again.", code="empty_file")
    if size > max_bytes:
        raise ImageError(
            f"{name} has {size:,} bytes. At most {max_bytes:,} are allowed.",
            remedy="Save a smaller copy, or raise max_bytes if you trust the file.",
            code="too_many_bytes",
        )
    return data


def content_hash(data: bytes) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def rgb_from_array(array: npt.NDArray[Any]) -> Pixels:
    """Return a uint8 RGB image (height, width, 3) from RGB, grey (height, width) or RGBA pixels.

    Raises:
        ImageError: `bad_array` for another dtype or shape, `too_small` below 8 pixels a side.
    """
    channels = array.shape[2] if array.ndim == 3 else 1 if array.ndim == 2 else 0
    if array.dtype != np.uint8 or channels not in (1, 3, 4):
        raise_bad_array(array)
    if min(array.shape[:2]) < MIN_SIDE_PX:
        _raise_too_small("The array", array.shape[1], array.shape[0])
    if channels == 3:
        return np.ascontiguousarray(array)
    grey_or_rgba = np.ascontiguousarray(array if channels == 4 else array.reshape(array.shape[:2]))
    return rgb_pixels(Image.fromarray(grey_or_rgba))


def _name(source: object) -> str:
    if isinstance(source, bytes):
        return f"The image given as {len(source):,} bytes"
    if isinstance(source, str | Path):
        return f"The image {str(source)!r}"
    raise UsageError(
        f"An image cannot be read from a {type(source).__name__}. Allowed: a path, bytes, or a NumPy array.",
        remedy="Pass a path, the bytes of an image file, or (to load_image) a uint8 array.",
    )


def _read_file(path: Path, name: str, max_bytes: int) -> tuple[bytes, int]:
    """Return (bytes, size in bytes); the bytes stay empty when there are too many of them."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(
                f"{name} is a folder. An image file is needed.", remedy="Name a file in it.", code="is_a_directory"
            )
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is a device, pipe or socket")
        if status.st_size > max_bytes:
            return b"", status.st_size
        with open(path, "rb") as file:
            data = file.read(min(max_bytes, status.st_size) + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        remedy = "Check the path; web addresses are not opened."
        raise ImageError(f"{name} does not exist.", remedy=remedy, code="not_found") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"{name} cannot be opened: {reason}.",
            remedy="Check the path and that you may read the file.",
            code="unreadable",
        ) from error
    return data, len(data)


def _check_size(header: Header, name: str, max_pixels: int) -> None:
    width, height = header.upright_size_px
    limit, where, remedy = max_pixels, "", "Save a smaller copy, or raise max_pixels if you trust the file."
    pillow_limit = Image.MAX_IMAGE_PIXELS
    if header.format in ("TIFF", "WEBP") and pillow_limit is not None and pillow_limit < max_pixels:
        limit, where, remedy = pillow_limit, f" in a {header.format}", "Save a smaller copy, or save it as JPEG."
    if width * height > limit:
        raise ImageError(
            f"{name} has {width:,} x {height:,} = {width * height:,} pixels. At most {limit:,} are allowed{where}.",
            remedy=remedy,
            code="too_many_pixels",
        )
    if min(width, height) < MIN_SIDE_PX:
        _raise_too_small(name, width, height)


def _raise_too_small(name: str, width: int, height: int) -> NoReturn:
    raise ImageError(
        f"{name} has {width} x {height} pixels. Each side needs at least {MIN_SIDE_PX}.",
        remedy="Use the original picture, not an icon of it.",
        code="too_small",
    )


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
