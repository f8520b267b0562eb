"""The facts of each image file: its hash, format and size, how it looks, its perceptual hash, and its faults.

All audit modules work on these facts. The limits of a fault are wide on purpose: a photograph of a lesion that a person
would use should pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.audit.cache import Store
from dermlens.audit.findings import Finding
from dermlens.bundle.quality import sharpness
from dermlens.data.framing import PIXEL_PATH_VERSION
from dermlens.data.header import read_header
from dermlens.data.images import InputSpec, Pixels, content_hash, decode, frame, read_bytes
from dermlens.data.records import Record
from dermlens.errors import DermlensError

VERSION = f"2-{PIXEL_PATH_VERSION}"
"""Raise the first number when this module would say something else of the same bytes."""

THUMB_PX = 32
SYMMETRIES = 8
"""Four turns, each with and without a mirror image."""

MIN_CONTRAST = 4.0  # below this a picture is nearly uniform, and every other such picture looks like it
MIN_SHARPNESS = 0.3  # 1 in 1000 dermoscopic pictures is below; of those blurred by 4 pixels of 224, 9 in 10
MIN_BRIGHTNESS = 50.0
MAX_DARK_SHARE = 0.6
MAX_BRIGHT_SHARE = 0.25
MIN_SIDE_PX = 64
MAX_ASPECT = 2.5

_LOOK_PX = 128
_LOOK = InputSpec(size_px=_LOOK_PX, framing="squash")
_HASH_SIDE = 8
_THREADS = 2
_CHUNK = 256
_DARK, _BRIGHT = 40, 250

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """How an image looks at 128 x 128 pixels.

    Attributes:
        brightness: mean grey, 0 to 255.
        contrast: standard deviation of grey.
        sharpness: which share of the differences between neighbours a 9-pixel mean takes away, 0 to 1 (after Crete
            et al. 2007); what is blurred already loses little.
        dark_share, bright_share: share of pixels below grey 40, and of pixels with every channel at 250 or more.
        dark_corners: how many of the four corners are nearly black.
        border_rgb: mean colour of the outermost tenth.
    """

    brightness: float
    contrast: float
    sharpness: float
    dark_share: float
    bright_share: float
    dark_corners: int
    border_rgb: tuple[float, float, float]


@dataclass(frozen=True)
class ImageFacts:
    """What is known of one file; where it cannot be read, only `error` says why.

    Attributes:
        sha256: of the bytes, None where the image cannot be read or decoded.
        error: why it cannot be read, else None.
        width_px, height_px: upright.
        quantisation: first digits of the hash of a JPEG's quantisation tables, "" for other formats.
        codes: the perceptual hash of the image in each of the eight symmetries, 64 bits each; the first is as it is.
    """

    sha256: str | None
    error: str | None = None
    format: str = ""
    width_px: int = 0
    height_px: int = 0
    size_bytes: int = 0
    quantisation: str = ""
    look: Look | None = None
    codes: tuple[int, ...] = ()


def read_facts(
    records: Sequence[Record], *, cache: bool = False, progress: Callable[[int], None] | None = None
) -> list[ImageFacts]:
    """Read every image; a file that cannot be read keeps its place with the error.

    Args:
        records: n records.
        cache: keep the facts by content in the user's cache; a file that is known there is hashed but not decoded.
        progress: called with the number of images just done, from this thread.
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
        look=_look(pixels, grey),
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
    tables = b"".join(_tables(data))
    return hashlib.sha256(tables).hexdigest()[:8] if tables else ""


def _tables(data: bytes) -> Iterator[bytes]:
    """Yield the payload of every DQT segment before the first scan."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker == 0xDA:  # the scan begins
            return
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xDB:
            yield data[place + 4 : place + 2 + length]
        place += 2 + max(2, length)


def _hash(record: Record) -> str:
    try:
        return content_hash(read_bytes(record.path))
    except DermlensError:
        return ""


def _grey(pixels: Pixels) -> Grey:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.uint8)


def _small(grey: Grey) -> Grey:
    return cv2.resize(grey, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _look(pixels: Pixels, grey: Grey) -> Look:
    values = grey.astype(np.float32)
    edge = _LOOK_PX // 10
    border = np.concatenate(
        [pixels[:edge].reshape(-1, 3), pixels[-edge:].reshape(-1, 3), pixels[:, :edge].reshape(-1, 3)]
    ).mean(axis=0)
    corner = _LOOK_PX // 16
    ends = slice(0, corner), slice(-corner, None)
    corners = [values[y, x].mean() for y in ends for x in ends]
    return Look(
        brightness=float(values.mean()),
        contrast=float(values.std()),
        sharpness=sharpness(values),
        dark_share=float((grey < _DARK).mean()),
        bright_share=float((pixels.min(axis=2) >= _BRIGHT).mean()),
        dark_corners=sum(bool(mean < _DARK) for mean in corners),
        border_rgb=(float(border[0]), float(border[1]), float(border[2])),
    )


_REMEDY = "Look at it; take it out, or use another picture of the lesion."


def quality_findings(records: Sequence[Record], facts: Sequence[ImageFacts]) -> list[Finding]:
    """Return a warning for each fault of each readable image."""
    return [
        Finding(kind, "warning", (record.image,), evidence, _REMEDY, (record.diagnosis,), (record.split or "",))
        for record, fact in zip(records, facts, strict=True)
        for kind, evidence in faults(fact)
    ]


def faults(fact: ImageFacts) -> list[tuple[str, str]]:
    """Return (kind, evidence) of everything that makes one image hard to read."""
    look = fact.look
    if look is None:
        return []
    found = []
    if look.contrast < MIN_CONTRAST:
        found.append(("near_uniform", f"It is nearly one colour: grey varies by {look.contrast:.1f} of 255."))
    elif look.sharpness < MIN_SHARPNESS:
        evidence = f"It has hardly any detail: sharpness {look.sharpness:.2f}, at least {MIN_SHARPNESS} is usual."
        found.append(("blurred", evidence))
    if look.brightness < MIN_BRIGHTNESS or look.dark_share > MAX_DARK_SHARE:
        share = f"{look.dark_share * 100:.0f} % of it is nearly black"
        found.append(("dark", f"{share}; its mean grey is {look.brightness:.0f} of 255."))
    if look.bright_share > MAX_BRIGHT_SHARE:
        found.append(("overexposed", f"{look.bright_share * 100:.0f} % of it is white."))
    width, height = fact.width_px, fact.height_px
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_ASPECT * min(width, height):
        found.append(("extreme_shape", f"It has {width} x {height} pixels."))
    return found
