"""Hostile uploads against a running server: every answer below 500, memory bounded, server alive.

Starts `dermlens serve` on loopback and sends the corpus, then random mutations of valid files.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import EXAMPLE, ROOT
from benchmarks.fresh import memory_mb
from benchmarks.report import markdown

PREDICT = "/api/v1/predictions"


@dataclass(frozen=True)
class Case:
    """One upload and the statuses that are right for it."""

    name: str
    body: bytes
    allowed: tuple[int, ...]
    content_type: str = "image/jpeg"


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    """Return a noisy image of the given kind and mode, the same every time."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    out = io.BytesIO()
    (image if mode == "RGB" else image.convert(mode)).save(out, kind, **options)
    return out.getvalue()


def bomb(width: int, height: int, most: int = 40_000_000) -> bytes:
    """Return a small PNG whose header promises width x height pixels; it holds zeros for them, up to `most` bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(min(width * height * 3 + height, most)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def sixteen_bit() -> bytes:
    out = io.BytesIO()
    Image.fromarray((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)).save(out, "PNG")
    return out.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("JPEG", exif=exif)


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=100)
    return out.getvalue()


def form(*parts: tuple[str, bytes], ending: bytes = b"--XX--\r\n") -> bytes:
    body = b""
    for name, data in parts:
        head = f'--XX\r\nContent-Disposition: form-data; name="{name}"; filename="../../etc/passwd"\r\n\r\n'
        body += head.encode() + data + b"\r\n"
    return body + ending


def corpus() -> list[Case]:
    """Return the named cases."""
    jpeg = EXAMPLE.read_bytes()
    png = encoded("PNG")
    page = b"<html><script>alert(1)</script></html>"
    multipart = "multipart/form-data; boundary=XX"
    return [
        Case("zero bytes", b"", (422,)),
        Case("one byte", b"\xff", (415,)),
        Case("cut-off JPEG", jpeg[: len(jpeg) // 2], (422,)),
        Case("cut-off PNG", png[: len(png) // 2], (422,), "image/png"),
        Case("PNG called image/jpeg", png, (200,)),
        Case("HTML called image/png", page, (415,), "image/png"),
        Case("polyglot: JPEG, then HTML", jpeg + page, (200,)),
        Case("polyglot: PDF, then JPEG", b"%PDF-1.7\n" + jpeg, (415,)),
        Case("polyglot: JPEG, then ZIP", jpeg + b"PK\x03\x04" + bytes(200), (200,)),
        Case("ELF program", b"\x7fELF" + bytes(1000), (415,), "application/octet-stream"),
        Case(
            "SVG with a script", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", (415,), "image/svg+xml"
        ),
        Case("bomb: 60,000 x 60,000", bomb(60_000, 60_000), (422,), "image/png"),
        Case("bomb: 1 x 2,000,000,000", bomb(1, 2_000_000_000), (422,), "image/png"),
        Case("header lies: 100 rows promised", bomb(5000, 100)[:90], (422,), "image/png"),
        Case("CMYK JPEG", encoded("JPEG", "CMYK"), (200, 422)),
        Case("grey JPEG", encoded("JPEG", "L"), (200,)),
        Case("palette PNG", encoded("PNG", "P"), (200,), "image/png"),
        Case("transparent PNG", encoded("PNG", "RGBA"), (200,), "image/png"),
        Case("16-bit PNG", sixteen_bit(), (200,), "image/png"),
        Case("progressive JPEG", encoded("JPEG", progressive=True), (200,)),
        Case("EXIF-turned JPEG", turned(6), (200,)),
        Case("EXIF orientation 99", turned(99), (200,)),
        Case("WebP", encoded("WEBP"), (200,), "image/webp"),
        Case("BMP", encoded("BMP"), (200,), "image/bmp"),
        Case("TIFF", encoded("TIFF"), (200,), "image/tiff"),
        Case("animated WebP", animated("WEBP"), (200,), "image/webp"),
        Case("animated GIF", animated("GIF"), (415,), "image/gif"),
        Case("4 x 4 pixels", encoded("PNG", size=(4, 4)), (422,), "image/png"),
        Case("1 x 5000 pixels", encoded("PNG", size=(1, 5000)), (422,), "image/png"),
        Case("form with a path as file name", form(("image", jpeg)), (200,), multipart),
        Case("form without an end", form(("image", jpeg), ending=b""), (400,), multipart),
        Case("form without an image", form(("other", b"x")), (422,), multipart),
        Case("form with 60 images", form(*[("image", png)] * 60), (422,), multipart),
        Case("form with another boundary", form(("image", jpeg)), (400,), "multipart/form-data; boundary=YY"),
        Case(
            "boundary of 10,000 characters",
            form(("image", jpeg)),
            (400,),
            f"multipart/form-data; boundary={'X' * 10_000}",
        ),
        Case("33 MiB of zeros", bytes(33 * 1024 * 1024), (413,)),
        Case("21 MB JPEG with a tail", jpeg + bytes(21_000_000), (413,)),
    ]


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """Yield valid small files with bytes changed, cut out, doubled or cut off."""
    rng = np.random.default_rng(seed)
    seeds = [
        EXAMPLE.read_bytes(),
        encoded("PNG"),
        encoded("WEBP"),
        encoded("BMP"),
        encoded("TIFF"),
        encoded("TIFF", compression="tiff_lzw"),
        encoded("JPEG", progressive=True),
        turned(6),
        encoded("WEBP", lossless=True),
    ]
    for _ in range(count):
        data = bytearray(seeds[rng.integers(len(seeds))])
        near_start = rng.random() < 0.5  # where headers are
        for _ in range(int(rng.integers(1, 9))):
            at = int(rng.integers(0, min(len(data), 200) if near_start else len(data)))
            kind = rng.integers(4)
            if kind == 0:
                data[at] = int(rng.integers(256))
            elif kind == 1:
                data[at : at + 4] = rng.bytes(4)
            elif kind == 2:
                del data[at : at + int(rng.integers(1, 64))]
            else:
                data[at:at] = data[at : at + int(rng.integers(1, 64))]
            data = data or bytearray(b"\0")
        yield bytes(data)


class Sender:
    """One connection, opened again when the server closed it."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def post(self, body: bytes, content_type: str = "image/jpeg") -> tuple[int, str]:
        """Return (status, problem code or prediction status)."""
        for attempt in (1, 2):
            try:
                self._connection.request("POST", PREDICT, body, {"Content-Type": content_type})
                response = self._connection.getresponse()
                answer = json.loads(response.read())
                return response.status, str(answer.get("code") or answer["status"])
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self._connection.close()
                if attempt == 2:
                    raise
        raise RuntimeError("not reached")


def run(*, count: int = 10_000, seed: int = 0, model: str = "default") -> dict[str, Any]:
    """Return the answer to each upload, the answers to the mutations, and the memory of the server."""
    with server(model) as (pid, port):
        sender = Sender(port)
        sender.post(EXAMPLE.read_bytes())
        peaks = [memory_mb(process=pid)]
        rows = run_corpus(sender.post)
        peaks.append(memory_mb(process=pid))
        counts = Counter(sender.post(body) for body in mutations(count, seed))
        peaks.append(memory_mb(process=pid))
        alive = sender.post(EXAMPLE.read_bytes())[0] == 200
    return {
        "uploads": [
            {"name": case.name, "status": status, "answer": code, "right": status in case.allowed}
            for case, status, code in rows
        ],
        "mutations": [{"status": s, "answer": code, "files": files} for (s, code), files in sorted(counts.items())],
        "seed": seed,
        "alive": alive,
        "peak_mb": dict(zip(("after one image", "after the uploads", "after the mutations"), peaks, strict=True)),
    }


@contextmanager
def server(model: str) -> Iterator[tuple[int, int]]:
    """Serve on a free port; gives (pid, port)."""
    command = [sys.executable, "-m", "dermlens", "serve", "--port", "0", "--quiet", "--model", model, "--drain", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        for line in process.stderr or ():
            if found := re.search(r"127\.0\.0\.1:(\d+)", line):
                yield process.pid, int(found[1])
                break
    finally:
        process.terminate()
        process.wait(timeout=60)


def run_corpus(send: Callable[[bytes, str], tuple[int, str]]) -> list[tuple[Case, int, str]]:
    return [(case, *send(case.body, case.content_type)) for case in corpus()]


def table(found: Mapping[str, Any]) -> str:
    """Return how the uploads are answered, grouped by answer, and what the mutations did."""
    answers: dict[tuple[int, str], list[str]] = {}
    for row in found["uploads"]:
        name = row["name"] if row["right"] else f"{row['name']} (wrong)"
        answers.setdefault((row["status"], row["answer"]), []).append(name)
    rows = [[f"{status} `{answer}`", "; ".join(names)] for (status, answer), names in sorted(answers.items())]
    files = sum(row["files"] for row in found["mutations"])
    counts = ", ".join(f"{row['status']} `{row['answer']}` {row['files']:,}" for row in found["mutations"])
    peaks = ", ".join(f"{mb:.0f} MB {when}" for when, mb in found["peak_mb"].items())
    return (
        f"{markdown(['answer', 'uploads'], rows)}\n\n{files:,} random mutations of valid files: {counts}. The server "
        f"is {'alive' if found['alive'] else 'gone'} afterwards; its peak memory: {peaks}."
    )
