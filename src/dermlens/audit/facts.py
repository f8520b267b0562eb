"""The facts of each image file: its hash, format and size, how it looks, its perceptual hash, and its faults.

All audit modules work on these facts. The limits of a fault are wide on purpose: a photograph of a lesion that a person
would use should pass.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.audit.cache import Store
from dermlens.audit.findings import Finding
from dermlens.bundle.quality import DARK, DEFAULT_LIMITS, LOOK_PX, Quality, measure
from dermlens.data.framing import PIXEL_PATH_VERSION
from dermlens.data.header import jpeg_segments, read_header
from dermlens.data.images import InputSpec, Pixels, content_hash, decode, frame, read_bytes
from dermlens.data.records import Record
from dermlens.errors import DermlensError
from dermlens.reporting.progress import Advance

VERSION = f"3-{PIXEL_PATH_VERSION}"
"""Raise the first number when this module would say something else of the same bytes."""

THUMB_PX = 32
SYMMETRIES = 8
"""Four turns, each with and without a mirror image."""

MIN_SIDE_PX = 64
MAX_ASPECT = 2.5

_LOOK = InputSpec(size_px=LOOK_PX, framing="squash")
_HASH_SIDE = 8
_THREADS = 2
_CHUNK = 256
_REMEDY = "Look at it; leave it out, or use another picture of the lesion."

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageFacts:
    """What is known of one file; where it cannot be read, only `error` says why.

    Attributes:
        sha256: of the bytes, None where the image cannot be read or decoded.
        error: why it cannot be read, else None.
        width_px, height_px: upright.
        quantisation: first digits of the hash of a JPEG's quantisation tables, "" for other formats.
        quality: sharpness, exposure and the like at 128 x 128 pixels.
        dark_corners: how many of the four corners are nearly black.
        border_rgb: mean colour of the outermost tenth.
        codes: the perceptual hash of the image in each of the eight symmetries, 64 bits each; the first is as it is.
    """

    sha256: str | None
    error: str | None = None
    format: str = ""
    width_px: int = 0
    height_px: int = 0
    size_bytes: int = 0
    quantisation: str = ""
    quality: Quality | None = None
    dark_corners: int = 0
    border_rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)
    codes: tuple[int, ...] = ()

    @property
    def shows_something(self) -> bool:
        """Whether it is more than one colour: all pictures of one colour look alike."""
        return self.quality is not None and self.quality.contrast >= DEFAULT_LIMITS.min_contrast


def read_facts(records: Sequence[Record], *, cache: bool = False, progress: Advance | None = None) -> list[ImageFacts]:
    """Read every image; a file that cannot be read keeps its place with the error.

    Args:
        records: n records.
        cache: keep the facts by content in the user's cache; a file that is known there is hashed but not decoded.
    """
    store: Store[ImageFacts] = Store(f"facts {VERSION}", ImageFacts, enabled=cache)
    result: list[ImageFacts] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(records), _CHUNK):
            part = records[start : start + _CHUNK]
            hashes = list(pool.map(_hash, part)) if cache else [""] * len(part)
            known = store.load(set(hashes))
            missing = [record for record, digest in zip(part, hashes, strict=True) if digest not in known]
            computed = pool.map(facts_of, missing)
            for digest in hashes:
                result.append(known[digest] if digest in known else next(computed))
                if progress is not None:
                    progress(1)
            store.save({f.sha256: f for f in result[start:] if f.sha256 is not None and f.sha256 not in known})
    return result


def facts_of(record: Record) -> ImageFacts:
    """Return the facts of one record's file."""
    try:
        data = read_bytes(record.path)
        header = read_header(data, f"The image {record.image!r}")
        pixels = frame(decode(data, spec=_LOOK), _LOOK)
    except DermlensError as error:
        return ImageFacts(None, error.message)
    width, height = header.upright_size_px
    grey = _grey(pixels)
    return ImageFacts(
        sha256=content_hash(data),
        format=header.format,
        width_px=width,
        height_px=height,
        size_bytes=len(data),
        quantisation=quantisation_of(data) if header.format == "JPEG" else "",
        quality=measure(pixels),
        dark_corners=_dark_corners(grey),
        border_rgb=_border(pixels),
        codes=perceptual_codes(_small(grey)),
    )


def thumbnail(record: Record) -> Grey | None:
    """Return the grey (32, 32) picture that the perceptual hash is made from; None where it cannot be read."""
    try:
        return _small(_grey(frame(decode(record.path, spec=_LOOK), _LOOK)))
    except DermlensError:
        return None


def perceptual_codes(thumb: Grey) -> tuple[int, ...]:
    """Return the pHash of a grey thumbnail in its eight symmetries.

    The discrete cosine transform of a mirrored image is the image's own with every second column negated, that of a
    transposed one its transpose: so one transform gives all eight. Symmetry s is `turned(thumb, s)`.
    """
    low = cv2.dct(thumb.astype(np.float32))[:_HASH_SIDE, :_HASH_SIDE]
    signs = np.where(np.arange(_HASH_SIDE) % 2 == 0, 1.0, -1.0)
    codes = []
    for symmetry in range(SYMMETRIES):
        turned_low = low.T if symmetry & 4 else low
        if symmetry & 1:
            turned_low = turned_low * signs[None, :]
        if symmetry & 2:
            turned_low = turned_low * signs[:, None]
        flat = turned_low.ravel()[1:]  # the first coefficient is the brightness
        bits = np.concatenate([[False], flat > np.median(flat)])
        codes.append(int(np.packbits(bits).view(">u8")[0]))
    return tuple(codes)


def turned(image: Grey, symmetry: int) -> Grey:
    """Return the image in one of eight symmetries: bit 4 transposes, then bit 1 mirrors left-right, bit 2 up-down."""
    result = image.T if symmetry & 4 else image
    if symmetry & 1:
        result = result[:, ::-1]
    if symmetry & 2:
        result = result[::-1]
    return result


def quantisation_of(data: bytes) -> str:
    """Return eight hex digits for the quantisation tables of a JPEG: which program saved it, at which quality."""
    tables = b""
    with suppress(IndexError, struct.error):  # cut off
        tables = b"".join(data[start:end] for marker, start, end in jpeg_segments(data) if marker == 0xDB)
    return hashlib.sha256(tables).hexdigest()[:8] if tables else ""


def _hash(record: Record) -> str:
    try:
        return content_hash(read_bytes(record.path))
    except DermlensError:
        return ""


def _grey(pixels: Pixels) -> Grey:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.uint8)


def _small(grey: Grey) -> Grey:
    return cv2.resize(grey, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _dark_corners(grey: Grey) -> int:
    size = LOOK_PX // 16
    ends = slice(0, size), slice(-size, None)
    return sum(bool(grey[y, x].mean() < DARK) for y in ends for x in ends)


def _border(pixels: Pixels) -> tuple[float, float, float]:
    edge = LOOK_PX // 10
    sides = [pixels[:edge].reshape(-1, 3), pixels[-edge:].reshape(-1, 3), pixels[:, :edge].reshape(-1, 3)]
    red, green, blue = np.concatenate(sides).mean(axis=0).tolist()
    return red, green, blue


def first_of_each(keys: Sequence[str], facts: Sequence[ImageFacts]) -> list[int]:
    """Return the first index of each key ("" is none) whose image is more than one colour, sorted."""
    first: dict[str, int] = {}
    for index, (key, fact) in enumerate(zip(keys, facts, strict=True)):
        if key and fact.shows_something:
            first.setdefault(key, index)
    return sorted(first.values())


def quality_findings(records: Sequence[Record], facts: Sequence[ImageFacts]) -> list[Finding]:
    """Return a warning for each fault of each readable image."""
    return [
        Finding.of(kind, [record], evidence, _REMEDY)
        for record, fact in zip(records, facts, strict=True)
        for kind, evidence in faults(fact)
    ]


def faults(fact: ImageFacts) -> list[tuple[str, str]]:
    """Return (kind, evidence) of everything that makes one image hard to read."""
    seen, limits = fact.quality, DEFAULT_LIMITS
    if seen is None:
        return []
    found = []
    if seen.contrast < limits.min_contrast:
        found.append(("near_uniform", f"It is nearly one colour: grey varies by {seen.contrast:.1f} of 255."))
    elif seen.sharpness < limits.min_sharpness:
        evidence = f"It has hardly any detail: sharpness {seen.sharpness:.2f}, usual is {limits.min_sharpness} or more."
        found.append(("blurred", evidence))
    if seen.brightness < limits.min_brightness or seen.dark_share > limits.max_dark_share:
        share = f"{seen.dark_share * 100:.0f} % of it is nearly black"
        found.append(("dark", f"{share}; its mean grey is {seen.brightness:.0f} of 255."))
    if seen.bright_share > limits.max_bright_share:
        found.append(("overexposed", f"{seen.bright_share * 100:.0f} % of it is white."))
    width, height = fact.width_px, fact.height_px
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_ASPECT * min(width, height):
        found.append(("extreme_shape", f"It has {width} x {height} pixels."))
    return found
