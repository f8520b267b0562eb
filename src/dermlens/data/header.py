"""What the first bytes of an image file say: format, size and EXIF orientation; no pixel is decoded.

Limits must hold before a decoder allocates anything, and Pillow allocates (WebP) or warns (EXIF, large sizes)
while it opens a file. So these few fields are read here, by the five formats' public specifications, and a
file that is none of the five never reaches a decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dermlens.errors import ImageError

ImageFormat = Literal["JPEG", "PNG", "WEBP", "BMP", "TIFF"]

ALLOWED_FORMATS = "JPEG, PNG, WebP, BMP or TIFF"
MAX_BLOCKS = 100_000  # segments or chunks; a photograph has hundreds, a 50 MP PNG some thousands
TURNED_ORIENTATIONS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height

_BMP_HEADER_BYTES = frozenset({12, 40, 52, 56, 64, 108, 124})
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_NO_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION = 256, 257, 274
_TIFF_INTEGERS = {3: "H", 4: "I"}

_STRANGERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "a GIF"),
    (4, b"ftypavif", "an AVIF photo"),
    (4, b"ftyphe", "a HEIC photo"),
    (4, b"ftypmif1", "a HEIC photo"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (0, b"II+\x00", "a BigTIFF"),
    (0, b"MM\x00+", "a BigTIFF"),
    (128, b"DICM", "a DICOM file"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a ZIP archive"),
)


@dataclass(frozen=True)
class Header:
    """Format, stored size in pixels and EXIF orientation (1 to 8, 1 is upright) of one image file."""

    format: ImageFormat
    width_px: int
    height_px: int
    orientation: int = 1

    @property
    def upright_size_px(self) -> tuple[int, int]:
        """(width, height) once the orientation is applied."""
        if self.orientation in TURNED_ORIENTATIONS:
            return self.height_px, self.width_px
        return self.width_px, self.height_px


def read_header(data: bytes, name: str) -> Header:
    """Read format, size and orientation of an image file from its bytes.

    Only the file's structure is walked, so a header that promises 30,000 x 30,000 pixels costs nothing.

    Args:
        data: the whole file.
        name: how to call the image in an error.

    Raises:
        ImageError: `unsupported_format`, `truncated` (the file ends too early) or `unreadable`.
    """
    kind = recognise(data)
    if kind is None:
        raise ImageError(
            f"{name} is {_describe_stranger(data)}. Images must be {ALLOWED_FORMATS} by their content, "
            "whatever the file is called.",
            remedy="Save or export it as JPEG or PNG.",
            code="unsupported_format",
        )
    try:
        return _READERS[kind](data)
    except (IndexError, struct.error) as error:
        raise ImageError(
            f"{name} is cut off: it ends after {len(data):,} bytes, too early for a whole {kind}.",
            remedy="Copy or download it again.",
            code="truncated",
        ) from error
    except ValueError as error:
        raise ImageError(
            f"{name} has a damaged {kind} header: {error}.",
            remedy="Open it in an image viewer and save it again, or use another copy.",
            code="unreadable",
        ) from error


def recognise(data: bytes) -> ImageFormat | None:
    """Name the format of an image file by its content, or None when it is not one of the five."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"II*\x00", b"MM\x00*")):
        return "TIFF"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES:
        return "BMP"
    return None


def _describe_stranger(data: bytes) -> str:
    for offset, signature, description in _STRANGERS:
        if data.startswith(signature, offset):
            return description
    start = data[:256]
    if all((byte >= 32 and byte != 127) or byte in b"\t\r\n" for byte in start):
        return f"text, not an image (it starts with {start[:16].decode('utf-8', 'replace')!r})"
    return f"of an unknown format (it starts with bytes {start[:8].hex(' ')})"


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each segment of a JPEG up to the first scan (ITU-T T.81, annex B).

    Raises:
        IndexError, struct.error: the bytes end too early.
    """
    at = 2
    for _ in range(MAX_BLOCKS):
        at = _next_marker(data, at)
        marker = data[at + 1]
        if marker == 0xDA:
            return
        if marker in _JPEG_NO_LENGTH:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, at + 4, at + 2 + length
        at += 2 + length


def _read_jpeg(data: bytes) -> Header:
    size: tuple[int, int] | None = None
    orientation = 1
    for marker, start, end in jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, start + 1)
            size = width, height
        elif marker == 0xE1 and data.startswith(b"Exif\x00\x00", start):
            orientation = _exif_orientation(data[start + 6 : end])
    if size is None:
        raise ValueError("no frame before the first scan")
    return _checked("JPEG", *size, orientation)


def _next_marker(data: bytes, at: int) -> int:
    """Position of the last 0xFF before the next marker code; IndexError when the bytes end."""
    at = data.find(b"\xff", at)
    if at < 0:
        raise IndexError("no further marker")
    while data[at + 1] == 0xFF:
        at += 1
    return at


def _read_png(data: bytes) -> Header:
    width, height = struct.unpack_from(">4xII", data, 12)
    if data[12:16] != b"IHDR":
        raise ValueError("the first chunk is not IHDR")
    orientation = 1
    for kind, start, length in _chunks(data, at=8, layout=">I4s", overhead=12, even=False):
        if kind == b"eXIf":
            orientation = _exif_orientation(data[start : start + length])
        elif kind == b"IEND":
            return _checked("PNG", width, height, orientation)
    raise IndexError("no IEND chunk")


def _read_webp(data: bytes) -> Header:
    """Canvas size from the first chunk (RFC 9649, sections 2.5 to 2.7)."""
    (riff_bytes,) = struct.unpack_from("<I", data, 4)
    if riff_bytes + 8 > len(data):
        raise IndexError("the RIFF size goes beyond the end")
    first = data[12:16]
    orientation = 1
    if first == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
        for kind, start, length in _chunks(data, at=12, layout="<4sI", overhead=8, even=True):
            if kind == b"EXIF":
                orientation = _exif_orientation(data[start : start + length].removeprefix(b"Exif\x00\x00"))
    elif first == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif first == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise ValueError(f"unknown first chunk {first!r}")
    return _checked("WEBP", width, height, orientation)


def _read_bmp(data: bytes) -> Header:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return _checked("BMP", width, abs(height))  # a negative height means: top row first


def _read_tiff(data: bytes) -> Header:
    tags = _tiff_integers(data)
    if _TIFF_WIDTH not in tags or _TIFF_HEIGHT not in tags:
        raise ValueError("width or height is missing")
    return _checked("TIFF", tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT], tags.get(_TIFF_ORIENTATION, 1))


_READERS = {"JPEG": _read_jpeg, "PNG": _read_png, "WEBP": _read_webp, "BMP": _read_bmp, "TIFF": _read_tiff}


def _checked(kind: ImageFormat, width: int, height: int, orientation: int = 1) -> Header:
    if width < 1 or height < 1:
        raise ValueError(f"the size is {width} x {height} pixels")
    return Header(kind, width, height, orientation if 1 <= orientation <= 8 else 1)


def _chunks(data: bytes, *, at: int, layout: str, overhead: int, even: bool) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, length) of each PNG or RIFF chunk until the bytes end."""
    for _ in range(MAX_BLOCKS):
        if at + overhead > len(data):
            return
        first, second = struct.unpack_from(layout, data, at)
        kind, length = (second, first) if isinstance(first, int) else (first, second)
        yield kind, at + 8, length
        at += overhead + length + (length & 1 if even else 0)
    raise ValueError(f"more than {MAX_BLOCKS:,} chunks")


def _exif_orientation(exif: bytes) -> int:
    """Orientation in an EXIF block; 1 where the block is damaged, for the pixels may still be fine."""
    try:
        return _tiff_integers(exif).get(_TIFF_ORIENTATION, 1)
    except (struct.error, ValueError):
        return 1


def _tiff_integers(data: bytes) -> dict[int, int]:
    """Single integers of the first image file directory, by tag; where a tag is repeated the first counts."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("no byte order mark")
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, directory)
    values: dict[int, int] = {}
    for at in range(directory + 2, directory + 2 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", data, at)
        if count == 1 and kind in _TIFF_INTEGERS:
            (value,) = struct.unpack_from(order + _TIFF_INTEGERS[kind], data, at + 8)
            values.setdefault(tag, value)
    return values
