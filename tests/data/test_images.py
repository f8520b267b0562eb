"""The pixel path: every format, mode, orientation and limit, and files that mean harm."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dermlens.data.framing import PAD_VALUE
from dermlens.data.images import (
    IMAGE_EXTENSIONS,
    InputSpec,
    content_hash,
    decode,
    frame,
    load_image,
    read_bytes,
    rgb_from_array,
)
from dermlens.errors import ImageError, UsageError

Pixels = npt.NDArray[np.uint8]
SPEC = InputSpec(size_px=32)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
ORIENTATION_TAG = 274


def photo(width: int = 60, height: int = 44, seed: int = 0) -> Pixels:
    """A smooth, asymmetric picture, so that turned and mirrored copies all differ."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def encode(image: Pixels | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def lossless(kind: str) -> dict[str, Any]:
    options: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 95, "subsampling": 0},
    }
    return options.get(kind, {})


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def png16(values: npt.NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG, grey (h, w) or RGB (h, w, 3)."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, 2 if values.ndim == 3 else 0, rows)


def tiff(values: npt.NDArray[Any], photometric: int, sample_format: int = 1, order: Literal["<", ">"] = "<") -> bytes:
    """An uncompressed one-strip TIFF of any dtype, grey (h, w) or (h, w, channels)."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits_at = 8 + len(pixels)
    bits = struct.pack(f"{order}{channels}H", *[values.dtype.itemsize * 8] * channels)
    in_place = bits.ljust(4, b"\0") if len(bits) <= 4 else struct.pack(order + "I", bits_at)
    numbers = {256: width, 257: height, 259: 1, 262: photometric, 273: 8, 277: channels, 278: height}
    numbers |= {279: len(pixels), 339: sample_format}
    entries = {tag: struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in numbers.items()}
    entries[258] = struct.pack(order + "HHI", 258, 3, channels) + in_place
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "I", bits_at + len(bits)) + pixels + bits + directory + bytes(4)


def code_of(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, SPEC, **options)
    error = caught.value
    assert error.message and error.remedy and "\n" not in str(error)
    return error.code


def difference(first: Pixels, second: Pixels) -> npt.NDArray[np.int64]:
    return np.abs(first.astype(np.int64) - second.astype(np.int64))


# Formats and modes


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_recognised_by_content_and_decoded(kind: str, tmp_path: Path) -> None:
    image = photo()
    path = tmp_path / "misleading.txt"
    path.write_bytes(encode(image, kind, **lossless(kind)))
    decoded = decode(path)
    assert decoded.dtype == np.uint8
    assert decoded.shape == image.shape
    assert difference(decoded, image).max() <= (24 if kind == "JPEG" else 0)
    assert load_image(path, SPEC).shape == (32, 32, 3)


def test_decoded_image_is_writeable_and_in_rgb_order() -> None:
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 0] = 255
    for kind in FORMATS:
        decoded = decode(encode(red, kind))
        decoded[0, 0] = 0
        assert decoded[5, 5, 0] > 250 and decoded[5, 5, 2] < 5, kind


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 2}, {"optimize": True}])
def test_jpeg_variants(options: dict[str, Any]) -> None:
    assert difference(decode(encode(photo(), "JPEG", quality=95, **options)), photo()).mean() < 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF"])
def test_grey(kind: str) -> None:
    decoded = decode(encode(photo()[..., 0], kind))
    assert decoded.shape == (44, 60, 3)
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_black_and_white(kind: str) -> None:
    decoded = decode(encode(Image.fromarray(photo()[..., 0]).convert("1"), kind))
    assert set(np.unique(decoded)) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_palette(kind: str) -> None:
    palette = Image.fromarray(photo()).convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    assert np.array_equal(decode(encode(palette, kind)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 128])])
def test_palette_with_transparency_is_laid_over_white(transparency: int | bytes) -> None:
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.putpixel((15, 15), 1)
    decoded = decode(encode(palette, "PNG", transparency=transparency))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[15, 15].tolist() == [0, 200, 0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_rgba_is_laid_over_white(kind: str) -> None:
    rgba = np.dstack([np.full((16, 16, 3), 100, np.uint8), np.full((16, 16), 255, np.uint8)])
    rgba[:4, :, 3] = 0
    rgba[4:8, :, 3] = 51
    decoded = decode(encode(rgba, kind, **lossless(kind)))
    assert decoded[0, 0].tolist() == [255] * 3
    assert decoded[5, 5].tolist() == [224] * 3  # 0.2 * 100 + 0.8 * 255
    assert decoded[10, 10].tolist() == [100] * 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha(kind: str) -> None:
    decoded = decode(encode(Image.new("LA", (16, 16), (0, 0)), kind))
    assert decoded.min() == 255


def test_rgb_png_with_a_transparent_colour() -> None:
    image = Image.new("RGB", (16, 16), (10, 20, 30))
    assert decode(encode(image, "PNG", transparency=(10, 20, 30))).min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decode(encode(cmyk, kind))
    assert decoded[8, 8, 0] > 240 and decoded[8, 8, 1] < 15 and decoded[8, 8, 2] < 15


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_compressed_tiff(compression: str) -> None:
    decoded = decode(encode(photo(), "TIFF", compression=compression))
    assert difference(decoded, photo()).mean() < (8 if compression == "jpeg" else 1e-9)


def ramp16() -> npt.NDArray[np.uint16]:
    return np.linspace(0, 65535, 64 * 16).astype(np.uint16).reshape(16, 64)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    expected = (ramp16() >> 8).astype(np.uint8)
    for data in (png16(ramp16()), tiff(ramp16(), 1), tiff(ramp16(), 1, order=">")):
        decoded = decode(data)
        assert np.array_equal(decoded, np.repeat(expected[..., None], 3, axis=2))
    compressed = encode(Image.fromarray(ramp16()), "TIFF", compression="tiff_lzw")
    assert np.array_equal(decode(compressed)[..., 0], expected)


def test_16_bit_rgb_is_scaled_not_clipped() -> None:
    wide = photo().astype(np.uint16) * 257
    for data in (png16(wide), tiff(wide, 2), tiff(wide, 2, order=">")):
        assert np.array_equal(decode(data), photo())


def test_16_bit_promotion_is_undone_exactly() -> None:
    grey = photo()[..., 1].astype(np.uint16)
    for factor in (257, 256):
        wide = (grey * factor).astype(np.uint16)
        assert np.array_equal(decode(png16(wide))[..., 0], grey)


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_grey_is_read_on_the_smallest_scale_that_holds_it(top: float) -> None:
    ramp = np.linspace(0, top, 1024, dtype=np.float32).reshape(16, 64)
    decoded = decode(tiff(ramp, 1, sample_format=3))
    expected = np.linspace(0, 255, 1024).reshape(16, 64)
    assert np.abs(decoded[..., 0] - expected).max() <= 1


def test_32_bit_grey_is_scaled() -> None:
    decoded = decode(tiff(ramp16().astype(np.int32), 1, sample_format=2))
    assert np.array_equal(decoded[..., 0], ramp16() >> 8)


@pytest.mark.parametrize("value", [-1.0, 1e6, np.nan])
def test_float_grey_without_a_scale_is_refused(value: float) -> None:
    values = np.full((16, 16), 0.5, np.float32)
    values[3, 3] = value
    assert code_of(tiff(values, 1, sample_format=3)) == "unreadable"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(3)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **lossless(kind))
    assert np.array_equal(decode(data), photo())


def test_interlaced_png() -> None:
    # Adam7 written by hand for a constant image: seven passes of a 8 x 8 picture
    passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
    rows = b"".join((b"\0" + bytes([90, 60, 30]) * width) * height for width, height in passes)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    assert np.array_equal(decode(data), np.full((8, 8, 3), (90, 60, 30), np.uint8))


# EXIF orientation


def upright(image: Pixels, orientation: int) -> Pixels:
    """What a stored image looks like once its orientation is applied (EXIF 2.32, tag 274)."""
    turned = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, -1),
        7: image[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(image),
    }
    return np.ascontiguousarray(turned[orientation])


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_equals_a_turned_image(kind: str, orientation: int) -> None:
    options = lossless(kind)
    plain = decode(encode(photo(), kind, **options))
    if kind == "TIFF":
        tagged = encode(photo(), kind, tiffinfo={ORIENTATION_TAG: orientation})
    else:
        tagged = encode(photo(), kind, exif=exif_with(orientation), **options)
    expected = upright(plain, orientation)
    assert np.array_equal(decode(tagged), expected)
    assert np.array_equal(load_image(tagged, SPEC), frame(expected, SPEC))


def test_orientation_of_a_compressed_and_of_a_many_paged_tiff() -> None:
    pages = {"save_all": True, "append_images": [Image.fromarray(photo(seed=1))]}
    for options in ({"compression": "tiff_lzw"}, pages):
        data = encode(photo(), "TIFF", tiffinfo={ORIENTATION_TAG: 6}, **options)
        assert np.array_equal(decode(data), upright(photo(), 6))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_and_reduced_decode_together(orientation: int) -> None:
    image = photo(640, 480)
    plain = encode(image, "JPEG", quality=95)
    tagged = encode(image, "JPEG", quality=95, exif=exif_with(orientation))
    assert decode(tagged, spec=SPEC).shape[:2] in {(120, 160), (160, 120)}
    assert np.array_equal(decode(tagged, spec=SPEC), upright(decode(plain, spec=SPEC), orientation))


def test_orientation_in_big_endian_exif() -> None:
    entry = struct.pack(">HHIHH", ORIENTATION_TAG, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    assert decode(encode(photo(), "JPEG", exif=exif)).shape == (60, 44, 3)


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"rubbish" * 9, b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\xff"])
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    data = encode(photo(), "JPEG", exif=b"Exif\0\0" + exif)
    assert decode(data).shape == (44, 60, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_are_ignored(orientation: int) -> None:
    assert decode(encode(photo(), "JPEG", exif=exif_with(orientation))).shape == (44, 60, 3)


# Limits


def test_missing_file_folder_empty_file_and_device(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    assert code_of(tmp_path / "none.jpg") == "not_found"
    assert code_of(str(empty / "below.jpg")) == "not_found"
    assert code_of("https://example.org/lesion.jpg") == "not_found"
    assert code_of(tmp_path) == "is_a_directory"
    assert code_of(empty) == "empty_file"
    assert code_of(b"") == "empty_file"
    assert code_of(pipe) == "unreadable"
    assert code_of("nul\0byte.jpg") == "unreadable"
    assert code_of("x" * 5000) == "unreadable"


def test_byte_limit_is_checked_before_reading(tmp_path: Path) -> None:
    huge = tmp_path / "huge.jpg"
    with open(huge, "wb") as file:
        file.truncate(50 * 10**9)  # sparse: would not fit into memory
    assert code_of(huge) == "too_many_bytes"
    data = encode(photo(), "PNG")
    assert code_of(data, max_bytes=len(data) - 1) == "too_many_bytes"
    assert load_image(data, SPEC, max_bytes=len(data)).shape == (32, 32, 3)
    assert read_bytes(data) is data


def bomb(kind: str, side: int) -> bytes:
    """A small file whose header promises side x side pixels."""
    if kind == "PNG":
        return png(side, side, 8, 2, bytes(1000))
    if kind == "TIFF":
        small = tiff(np.zeros((16, 16), np.uint8), 1)
        return small.replace(struct.pack("<II", 1, 16), struct.pack("<II", 1, side), 2)
    data = bytearray(encode(photo(16, 16), kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, -side)
    else:
        data[26:30] = struct.pack("<HH", min(side, 16383), min(side, 16383))
    return bytes(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_30000_x_30000_is_refused_from_the_header_in_milliseconds(kind: str) -> None:
    data = bomb(kind, 30_000)
    start = time.perf_counter()
    assert code_of(data) == "too_many_pixels"
    assert time.perf_counter() - start < 0.05


@pytest.mark.parametrize("kind", FORMATS)
def test_pixel_limit_is_exact_and_can_be_raised(kind: str) -> None:
    data = encode(photo(100, 50), kind)
    assert code_of(data, max_pixels=4_999) == "too_many_pixels"
    assert decode(data, max_pixels=5_000).shape == (50, 100, 3)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
def test_a_raised_pixel_limit_stays_below_pillows_own(kind: str) -> None:
    assert code_of(bomb(kind, 10_000), max_pixels=10**9) == "too_many_pixels"


@pytest.mark.parametrize("size", [(7, 100), (100, 7), (1, 1)])
def test_too_small(size: tuple[int, int]) -> None:
    assert code_of(encode(photo(*size), "PNG")) == "too_small"
    assert load_image(encode(photo(8, 8), "PNG"), SPEC).shape == (32, 32, 3)


# Files that are something else, damaged, or hostile


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"diagnosis: nevus\n" * 9, "text"),
        ("Läsion, Größe".encode(), "text"),
        (b"BM is the start of this text and of a bitmap", "text"),
        (encode(photo(), "GIF"), "GIF"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "AVIF"),
        (b"%PDF-1.7" + bytes(40), "PDF"),
        (bytes(128) + b"DICM" + bytes(99), "DICOM"),
        (b"PK\x03\x04" + bytes(40), "ZIP"),
        (encode(photo(), "PPM"), "unknown"),
        (bytes(400), "unknown"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "unknown"),
    ],
)
def test_other_formats_are_named_and_refused(data: bytes, word: str, tmp_path: Path) -> None:
    path = tmp_path / "lesion.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        load_image(path, SPEC)
    assert caught.value.code == "unsupported_format"
    assert word in caught.value.message and "JPEG, PNG, WebP, BMP or TIFF" in caught.value.message


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_an_error_wherever_it_is_cut(kind: str) -> None:
    data = encode(photo(90, 70), kind, **({"quality": 95} if kind == "JPEG" else {}))
    for cut in sorted({*range(20, len(data), len(data) // 60), len(data) - 3}):
        assert code_of(data[:cut]) == "truncated", cut
    for cut in range(1, 20):
        assert code_of(data[:cut]) in {"truncated", "unsupported_format"}, cut


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # pytest undoes our own filter
@pytest.mark.parametrize("kind", FORMATS)
def test_random_damage_gives_an_image_error_or_an_image(kind: str) -> None:
    rng = np.random.default_rng(7)
    options = {"exif": exif_with(6)} if kind in {"JPEG", "PNG", "WEBP"} else {}
    data = np.frombuffer(encode(photo(), kind, **options), np.uint8)
    outcomes = set()
    for attempt in range(150):
        damaged = data.copy()
        reach = len(data) if attempt % 2 else min(len(data), 300)  # every other time, the header
        where = rng.integers(0, reach, rng.integers(1, 8))
        damaged[where] = rng.integers(0, 256, len(where))
        try:
            image = load_image(damaged.tobytes(), SPEC)
        except ImageError as error:
            outcomes.add(error.code)
            assert "\n" not in str(error)  # noqa: PT017
        else:
            outcomes.add("fine")
            assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert "fine" in outcomes and len(outcomes) > 1


def test_a_png_of_a_million_chunks_is_refused_quickly() -> None:
    data = png(16, 16, 8, 2, bytes(16 * 49))
    stuffed = data[:33] + png_chunk(b"quIz", b"") * 300_000 + data[33:]
    start = time.perf_counter()
    assert code_of(stuffed) == "unreadable"
    assert time.perf_counter() - start < 2


def test_a_png_whose_text_unpacks_to_gigabytes_is_refused() -> None:
    data = png(16, 16, 8, 2, bytes(16 * 49))
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000)))
    assert code_of(data[:33] + text + data[33:]) == "unreadable"


def test_a_jpeg_whose_second_frame_header_is_larger_is_refused() -> None:
    data = encode(photo(), "JPEG")
    at = data.index(b"\xff\xc0")
    (length,) = struct.unpack_from(">H", data, at + 2)
    frame_header = data[at : at + 2 + length]
    larger = frame_header[:5] + struct.pack(">HH", 60_000, 60_000) + frame_header[9:]
    assert code_of(data[:at] + frame_header + larger + data[at + 2 + length :]) == "too_many_pixels"


def test_no_warning_reaches_stderr() -> None:
    script = """
import io, sys
import numpy as np
from PIL import Image
from dermlens.data.images import InputSpec, load_image
from dermlens.errors import ImageError
rng = np.random.default_rng(3)
for kind in ("TIFF", "JPEG", "PNG", "WEBP", "BMP"):
    for options in ({}, {"compression": "tiff_lzw"}) if kind == "TIFF" else ({},):
        buffer = io.BytesIO()
        exif = Image.Exif(); exif[274] = 6; exif[271] = "a maker with a long name"
        if kind != "BMP": options = {**options, "exif": exif}
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(buffer, kind, **options)
        data = np.frombuffer(buffer.getvalue(), np.uint8)
        for _ in range(120):
            damaged = data.copy()
            where = rng.integers(0, min(len(data), 400), rng.integers(0, 6))
            damaged[where] = rng.integers(0, 256, len(where))
            try:
                load_image(damaged.tobytes(), InputSpec())
            except ImageError:
                pass
print("tensorflow" in sys.modules, "keras" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False, timeout=600
    )
    assert (done.returncode, done.stdout.split()) == (0, ["False", "False"]), done.stderr
    # libtiff (C code) writes "ZIPDecode: ..." there for a damaged TIFF; Pillow and Python write nothing
    for word in ("Warning", "Traceback", "More samples"):
        assert word not in done.stderr


# Framing and resizing


def test_large_jpeg_is_decoded_smaller_and_looks_the_same() -> None:
    data = encode(photo(4032, 3024), "JPEG", quality=90)
    spec = InputSpec()
    reduced = decode(data, spec=spec)
    assert reduced.shape == (756, 1008, 3)
    gap = difference(frame(reduced, spec), frame(decode(data), spec))
    assert gap.mean() < 0.5 and gap.max() <= 3


@pytest.mark.parametrize(
    ("width", "height", "spec", "aspect", "reduction"),
    [
        (600, 450, InputSpec(), None, 1),
        (895, 895, InputSpec(), None, 1),
        (896, 896, InputSpec(), None, 2),
        (2000, 896, InputSpec(), None, 2),
        (896, 448, InputSpec(framing="pad"), None, 2),
        (896, 448, InputSpec(framing="squash"), None, 1),
        (896, 896, InputSpec(), 2.0, 1),
        (1792, 1792, InputSpec(size_px=448), None, 2),
        (1792, 1792, InputSpec(size_px=112), None, 8),
    ],
)
def test_reduction_keeps_two_pixels_for_one(
    width: int, height: int, spec: InputSpec, aspect: float | None, reduction: int
) -> None:
    data = encode(photo(width, height), "JPEG")
    assert decode(data, spec=spec, frame_aspect=aspect).shape[:2] == (height // reduction, width // reduction)
    assert decode(encode(photo(width, height), "BMP"), spec=spec).shape[:2] == (height, width)


def test_centre_crop_takes_the_largest_centred_square() -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 32:96] = 200
    assert frame(image, SPEC).min() == 200
    assert frame(image.transpose(1, 0, 2), SPEC).min() == 200


def test_squash_keeps_everything() -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 64:] = 200
    squashed = frame(image, InputSpec(size_px=32, framing="squash"))
    assert squashed[:, :16].max() == 0 and squashed[:, 16:].min() == 200


def test_pad_fits_the_frame_in_and_fills_with_grey() -> None:
    spec = InputSpec(size_px=32, framing="pad")
    wide = frame(np.full((64, 128, 3), 200, np.uint8), spec)
    assert wide[8:24].min() == 200
    assert set(np.unique(wide[:8])) | set(np.unique(wide[24:])) == {PAD_VALUE}
    tall = frame(np.full((128, 64, 3), 200, np.uint8), spec)
    assert np.array_equal(tall, wide.transpose(1, 0, 2))


@pytest.mark.parametrize("framing", ["centre_crop", "pad"])
def test_squashed_file_is_framed_as_its_original_would_be(framing: Any) -> None:
    spec = InputSpec(size_px=96, framing=framing)
    original = photo(800, 600)
    squashed = np.asarray(cv2.resize(original, (600, 600), interpolation=cv2.INTER_AREA), np.uint8)
    assert difference(frame(squashed, spec, 4 / 3), frame(original, spec)).max() <= 3
    assert difference(frame(squashed, spec), frame(original, spec)).mean() > 3


@pytest.mark.parametrize("aspect", [0.0, -1.0, 0.05, 11.0, float("nan"), float("inf")])
def test_impossible_frame_aspect_is_refused(aspect: float) -> None:
    with pytest.raises(UsageError, match="frame_aspect"):
        frame(photo(), SPEC, aspect)


@pytest.mark.parametrize("size", [(64, 64), (500, 20), (20, 500), (31, 33), (32, 32), (8, 8)])
@pytest.mark.parametrize("interpolation", ["area", "bilinear"])
@pytest.mark.parametrize("framing", ["centre_crop", "squash", "pad"])
def test_every_shape_gives_a_square_and_keeps_a_flat_colour(
    size: tuple[int, int], interpolation: Any, framing: Any
) -> None:
    spec = InputSpec(size_px=32, interpolation=interpolation, framing=framing)
    framed = frame(np.full((*size, 3), PAD_VALUE, np.uint8), spec, 4 / 3)
    assert framed.shape == (32, 32, 3) and framed.flags.c_contiguous
    assert np.array_equal(framed, np.full((32, 32, 3), PAD_VALUE, np.uint8))


def test_area_averages_and_bilinear_does_not() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::8] = 240
    assert frame(stripes, SPEC).std() < 1
    assert set(np.unique(frame(stripes, InputSpec(size_px=32, interpolation="bilinear")))) == {0}


def test_frame_never_returns_the_callers_array() -> None:
    image = photo(32, 32)
    framed = frame(image, SPEC)
    assert np.array_equal(framed, image) and not np.shares_memory(framed, image)


# Arrays


def test_arrays_are_read_like_files() -> None:
    rgb = photo()
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    expected = load_image(encode(rgb, "PNG"), SPEC)
    assert np.array_equal(load_image(rgb, SPEC), expected)
    assert np.array_equal(load_image(rgba, SPEC), expected)
    grey = rgb[..., 0]
    assert np.array_equal(load_image(grey, SPEC), load_image(encode(grey, "PNG"), SPEC))
    assert np.array_equal(load_image(grey[..., None], SPEC), load_image(grey, SPEC))
    assert np.array_equal(load_image(rgb[:, ::-1], SPEC), load_image(rgb[:, ::-1].copy(), SPEC))
    rgba[..., 3] = 0
    assert rgb_from_array(rgba).min() == 255


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros((20, 20, 3), np.float32), "bad_array"),
        (np.zeros((20, 20, 3), np.uint16), "bad_array"),
        (np.zeros((20, 20, 3), bool), "bad_array"),
        (np.zeros((3, 20, 20), np.uint8), "bad_array"),
        (np.zeros((1, 20, 20, 3), np.uint8), "bad_array"),
        (np.zeros((20, 20, 2), np.uint8), "bad_array"),
        (np.zeros(20, np.uint8), "bad_array"),
        (np.zeros((), np.uint8), "bad_array"),
        (np.zeros((0, 20, 3), np.uint8), "too_small"),
        (np.zeros((7, 20, 3), np.uint8), "too_small"),
    ],
)
def test_other_arrays_are_refused_with_a_remedy(array: npt.NDArray[Any], code: str) -> None:
    assert code_of(array) == code


def test_frame_refuses_what_is_not_an_rgb_image() -> None:
    with pytest.raises(ImageError, match="float32"):
        frame(np.zeros((20, 20, 3), np.float32), SPEC)
    with pytest.raises(ImageError, match=r"\(20, 20\)"):
        frame(np.zeros((20, 20), np.uint8), SPEC)


def test_other_sources_are_wrong_use() -> None:
    with pytest.raises(UsageError, match="int"):
        load_image(3, SPEC)  # type: ignore[arg-type]


# One answer for one file


@pytest.mark.parametrize("kind", FORMATS)
def test_path_string_and_bytes_give_the_same_pixels(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "läsion 1.img"
    data = encode(photo(301, 203), kind)
    path.write_bytes(data)
    first = load_image(path, SPEC)
    assert np.array_equal(load_image(str(path), SPEC), first)
    assert np.array_equal(load_image(data, SPEC), first)
    assert np.array_equal(frame(decode(data, spec=SPEC), SPEC), first)


def test_threads_give_the_same_pixels() -> None:
    files = [encode(photo(700, 500, seed), kind) for seed, kind in enumerate(FORMATS)] * 8
    alone = [load_image(data, SPEC) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: load_image(data, SPEC), files))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_colour_profiles_are_ignored() -> None:
    plain = decode(encode(photo(), "PNG"))
    assert np.array_equal(decode(encode(photo(), "PNG", icc_profile=b"not even a profile" * 9)), plain)


def test_content_hash_is_sha256() -> None:
    assert content_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# The input specification


def test_specification_survives_json_and_has_a_fingerprint() -> None:
    spec = InputSpec(size_px=240, interpolation="bilinear", framing="pad")
    assert InputSpec.from_dict(spec.as_dict()) == spec
    prints = {InputSpec().fingerprint(), spec.fingerprint(), InputSpec(size_px=240).fingerprint()}
    assert len(prints) == 3 and all(len(text) == 12 for text in prints)
    assert InputSpec().fingerprint() == InputSpec(224, "area", "centre_crop").fingerprint()


@pytest.mark.parametrize(
    "values",
    [
        {"size_px": 0},
        {"size_px": 224.0},
        {"size_px": True},
        {"interpolation": "nearest"},
        {"framing": "crop"},
        {"size": 8},
    ],
)
def test_bad_specification_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        InputSpec.from_dict(values)
    assert caught.value.code == "input_spec"


def test_extensions_are_lower_case_with_a_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"} <= IMAGE_EXTENSIONS
    assert all(text == text.lower() and text.startswith(".") for text in IMAGE_EXTENSIONS)
