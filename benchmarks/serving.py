"""The server under load, against `predict_many` in one process.

    python benchmarks/serving.py [--rounds 3] [--seconds 8] [--queue 2]

Each round measures, one after the other on the same machine: `predict_many`; one client that waits for each answer
(unloaded); as many clients as keep the server busy without a refusal (capacity); and requests that arrive evenly at
twice that capacity, whatever the server does. The load generator runs on the same processors, so the server's
figures hold its cost too. Images: the examples, enlarged to 600 x 450 px JPEG, the size of HAM10000. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "images"
SIZE_PX = (600, 450)
CONNECTIONS = 64


def images() -> list[bytes]:
    """Return the example images as 600 x 450 px JPEG files."""
    found = []
    for path in sorted(EXAMPLES.glob("*.jpg")):
        out = io.BytesIO()
        Image.open(path).convert("RGB").resize(SIZE_PX, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found


def request_bytes(image: bytes) -> bytes:
    head = f"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}"
    return head.encode() + b"\r\n\r\n" + image


@dataclass
class Tally:
    """Statuses of all answers, and seconds until each that was accepted."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        if status == 200:
            self.seconds.append(seconds)

    def quantile_ms(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


class Connection:
    """One kept-alive connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> int:
        """Send a prepared request; return the status."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        return int(head[9:12])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def closed_loop(port: int, requests: list[bytes], clients: int, seconds: float) -> tuple[Tally, float]:
    """Let some clients ask again as soon as they are answered; return the tally and the seconds it took."""
    tally, source = Tally(), cycle(requests)
    start = time.perf_counter()

    async def client() -> None:
        connection = Connection(port)
        while time.perf_counter() - start < seconds:
            begun = time.perf_counter()
            tally.add(await connection.send(next(source)), time.perf_counter() - begun)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return tally, time.perf_counter() - start


async def open_loop(port: int, requests: list[bytes], rate: float, seconds: float) -> Tally:
    """Send requests at a fixed rate, whatever the server does; latency counts from when each was due."""
    tally, source = Tally(), cycle(requests)
    free = [Connection(port) for _ in range(CONNECTIONS)]

    async def one(due: float) -> None:
        connection = free.pop() if free else Connection(port)
        status = await connection.send(next(source))
        tally.add(status, time.perf_counter() - due)
        free.append(connection)

    start = time.perf_counter()
    tasks = []
    for number in range(int(rate * seconds)):
        due = start + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return tally


@contextmanager
def server(queue: int) -> Iterator[tuple[int, float]]:
    """Serve on a free port; gives the port and the seconds until it was ready."""
    command = [
        sys.executable,
        "-m",
        "dermlens",
        "serve",
        "--port",
        "0",
        "--quiet",
        "--drain",
        "0",
        "--queue",
        str(queue),
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr or ():
            if found := re.search(r"127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
                asyncio.run(_until_ready(port))
                yield port, time.perf_counter() - start
                break
    finally:
        process.terminate()
        process.wait(timeout=60)


async def _until_ready(port: int) -> None:
    while await Connection(port).send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n") != 200:
        await asyncio.sleep(0.01)


def predict_many_rate(pictures: list[bytes], seconds: float) -> float:
    """Return images a second of `predict_many` in a process of its own."""
    program = (
        "import sys, time, itertools; from dermlens import Predictor\n"
        "files = [open(name, 'rb').read() for name in sys.argv[2:]]\n"
        "predictor = Predictor('default'); list(predictor.predict_many(files * 4))\n"
        "start = time.perf_counter(); count = 0\n"
        "for _ in predictor.predict_many(itertools.cycle(files)):\n"
        "    count += 1\n"
        "    if time.perf_counter() - start > float(sys.argv[1]): break\n"
        "print(count / (time.perf_counter() - start))\n"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        names = []
        for number, picture in enumerate(pictures):
            path = Path(folder) / f"{number}.jpg"
            path.write_bytes(picture)
            names.append(str(path))
        done = subprocess.run([sys.executable, "-c", program, str(seconds), *names], capture_output=True, check=True)
    return float(done.stdout)


def one_round(pictures: list[bytes], queue: int, seconds: float) -> dict[str, float]:
    requests = [request_bytes(picture) for picture in pictures]
    many = predict_many_rate(pictures, seconds)
    with server(queue) as (port, ready_s):
        asyncio.run(closed_loop(port, requests, 2, 2))  # warm
        unloaded, _ = asyncio.run(closed_loop(port, requests, 1, seconds))
        busy, took = asyncio.run(closed_loop(port, requests, queue, seconds))
        capacity = busy.statuses[200] / took
        loaded = asyncio.run(open_loop(port, requests, 2 * capacity, seconds))
    others = sum(n for status, n in loaded.statuses.items() if status not in (200, 429))
    return {
        "ready_s": ready_s,
        "predict_many_per_s": many,
        "capacity_per_s": capacity,
        "capacity_share": capacity / many,
        "unloaded_p50_ms": unloaded.quantile_ms(0.5),
        "unloaded_p99_ms": unloaded.quantile_ms(0.99),
        "loaded_accepted_per_s": loaded.statuses[200] / seconds,
        "loaded_p50_ms": loaded.quantile_ms(0.5),
        "loaded_p99_ms": loaded.quantile_ms(0.99),
        "loaded_p99_over_unloaded_p50": loaded.quantile_ms(0.99) / unloaded.quantile_ms(0.5),
        "loaded_share_429": loaded.statuses[429] / loaded.statuses.total(),
        "loaded_other_statuses": float(others),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--queue", type=int, default=2)
    options = parser.parse_args()
    pictures = images()
    rounds = [one_round(pictures, options.queue, options.seconds) for _ in range(options.rounds)]
    summary = {
        name: {
            "median": round(statistics.median(r[name] for r in rounds), 3),
            "low": round(min(r[name] for r in rounds), 3),
            "high": round(max(r[name] for r in rounds), 3),
        }
        for name in rounds[0]
    }
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({**machine, "rounds": options.rounds, "queue": options.queue, **summary}, indent=1))


if __name__ == "__main__":
    main()
