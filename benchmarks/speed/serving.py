"""The server under load, against `predict_many` in one process.

Each round measures, one after the other on the same machine: `predict_many`; one client that waits for each answer
(unloaded); as many clients as keep the server busy without a refusal (capacity); and requests that arrive evenly at
twice that capacity, whatever the server does. The load generator runs on the same processors, so the server's
figures contain its cost too. Images: the examples, enlarged to 600 x 450 px JPEG. Loopback only.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.fresh import fresh
from benchmarks.report import markdown
from benchmarks.timing import example_jpegs, write_jpegs

CONNECTIONS = 64
ROWS = {
    "ready_s": ("ready after, s", 2),
    "predict_many_per_s": ("`predict_many`, images a second", 0),
    "capacity_per_s": ("server at capacity, images a second", 0),
    "capacity_share": ("server as a share of `predict_many`, round by round", 2),
    "unloaded_p50_ms": ("one client alone: p50, ms", 1),
    "unloaded_p99_ms": ("one client alone: p99, ms", 1),
    "loaded_p50_ms": ("twice the capacity: p50 of the accepted, ms", 1),
    "loaded_p99_ms": ("twice the capacity: p99 of the accepted, ms", 1),
    "loaded_p99_over_unloaded_p50": ("that p99 as a multiple of one client's p50 (aim: below 5)", 1),
    "loaded_share_429": ("twice the capacity: share answered 429", 2),
    "loaded_other_statuses": ("twice the capacity: neither 200 nor 429", 0),
}


def run(*, rounds: int = 3, seconds: float = 8.0, queue: int = 2) -> dict[str, Any]:
    """Return median, lowest and highest of the rounds."""
    every = [_one_round(example_jpegs(), queue, seconds) for _ in range(rounds)]
    figures = {
        name: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for name in every[0]
        for values in [[found[name] for found in every]]
    }
    return {"rounds": rounds, "seconds": seconds, "queue": queue, "figures": figures}


def _one_round(pictures: list[bytes], queue: int, seconds: float) -> dict[str, float]:
    requests = [_request(picture) for picture in pictures]
    many = fresh(predict_many_rate, seconds).value
    with _server(queue) as (port, ready_s):
        asyncio.run(_closed_loop(port, requests, 2, 2))  # warm
        unloaded, _ = asyncio.run(_closed_loop(port, requests, 1, seconds))
        busy, took = asyncio.run(_closed_loop(port, requests, queue, seconds))
        capacity = busy.statuses[200] / took
        loaded = asyncio.run(_open_loop(port, requests, 2 * capacity, seconds))
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
        "loaded_other_statuses": float(sum(n for status, n in loaded.statuses.items() if status not in (200, 429))),
    }


def predict_many_rate(seconds: float) -> float:
    """Return images a second of `predict_many` in this process."""
    from dermlens import Predictor

    predictor = Predictor("default")
    with tempfile.TemporaryDirectory() as folder:
        files = [path.read_bytes() for path in write_jpegs(Path(folder), len(example_jpegs()))]
    list(predictor.predict_many(files * 4))
    start = time.perf_counter()
    count = 0
    for _ in predictor.predict_many(itertools.cycle(files)):
        count += 1
        if time.perf_counter() - start > seconds:
            break
    return count / (time.perf_counter() - start)


@dataclass
class Tally:
    """Statuses of all answers, and seconds until each that was accepted."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def add(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self.statuses[status] += 1
        if status == 200:
            self.seconds.append(seconds)

    def quantile_ms(self, share: float) -> float:
        """Return the milliseconds within which this share was answered."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


class Connection:
    """One connection that stays open."""

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
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()


def _request(image: bytes) -> bytes:
    head = f"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}"
    return head.encode() + b"\r\n\r\n" + image


async def _closed_loop(port: int, requests: list[bytes], clients: int, seconds: float) -> tuple[Tally, float]:
    """Let some clients ask again as soon as they are answered; return the tally and the seconds it took."""
    tally, source = Tally(), itertools.cycle(requests)
    start = time.perf_counter()

    async def client() -> None:
        connection = Connection(port)
        while time.perf_counter() - start < seconds:
            begun = time.perf_counter()
            tally.add(await connection.send(next(source)), time.perf_counter() - begun)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return tally, time.perf_counter() - start


async def _open_loop(port: int, requests: list[bytes], rate: float, seconds: float) -> Tally:
    """Send requests at a fixed rate, whatever the server does; latency counts from when each was due."""
    tally, source = Tally(), itertools.cycle(requests)
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
def _server(queue: int) -> Iterator[tuple[int, float]]:
    """Serve on a free port; gives the port and the seconds until it was ready."""
    command = [sys.executable, "-m", "dermlens", "serve", "--port", "0", "--quiet", "--drain", "0"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--queue", str(queue)], stderr=subprocess.PIPE, text=True, cwd=ROOT)
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


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each figure."""
    rows = []
    for key, (name, digits) in ROWS.items():
        value = found["figures"][key]
        rows.append([name, f"{value['median']:.{digits}f}", f"{value['low']:.{digits}f} to {value['high']:.{digits}f}"])
    return markdown(["", "median", "lowest to highest"], rows)
