"""Hostile uploads against a running server: every answer below 500, memory bounded, server alive.

    python benchmarks/hostile_uploads.py [--mutations 10000] [--seed 0] [--model default]

Starts `dermlens serve` on loopback, sends the corpus and random mutations of valid files, and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import re
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "images" / "MEL_ISIC_0000029.jpg"
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
        raise AssertionError


def memory_mib(pid: int, which: str) -> float:
    """Return what a process holds (`VmRSS`) or has held at most (`VmHWM`), in MiB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{which}:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else float("nan")


def peak_mib(pid: int) -> float:
    return memory_mib(pid, "VmHWM")


@contextmanager
def server(model: str) -> Iterator[tuple[int, int]]:
    """Serve on a free port; gives (pid, port)."""
    command = [sys.executable, "-m", "dermlens", "serve", "--port", "0", "--quiet", "--model", model, "--drain", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="default")
    options = parser.parse_args()
    with server(options.model) as (pid, port):
        sender = Sender(port)
        sender.post(EXAMPLE.read_bytes())
        before = peak_mib(pid)
        rows = run_corpus(sender.post)
        after_corpus = peak_mib(pid)
        counts: Counter[tuple[int, str]] = Counter()
        held = []
        for number, body in enumerate(mutations(options.mutations, options.seed), 1):
            counts[sender.post(body)] += 1
            if number % max(1, options.mutations // 5) == 0:
                held.append(f"{memory_mib(pid, 'VmRSS'):.0f}")
        after = peak_mib(pid)
        alive = sender.post(EXAMPLE.read_bytes())[0] == 200
    print("| upload | status | answer |\n|---|---|---|")
    for case, status, code in rows:
        print(f"| {case.name} | {status}{'' if status in case.allowed else ' (wrong)'} | `{code}` |")
    print(f"\n{options.mutations} random mutations of valid files (seed {options.seed}):\n")
    print("| status | answer | files |\n|---|---|---|")
    for (status, code), files in sorted(counts.items()):
        print(f"| {status} | `{code}` | {files} |")
    worst = max(status for status, _ in counts)
    print(f"\nLargest status {max(worst, *(s for _, s, _ in rows))}; server alive afterwards: {alive}.")
    print(
        f"Peak memory: {before:.0f} MiB after one image, {after_corpus:.0f} after the corpus, {after:.0f} at the end. "
        f"Held after each fifth of the mutations: {', '.join(held)} MiB."
    )


if __name__ == "__main__":
    main()
