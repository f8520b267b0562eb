"""Units of work -> images ready to decode, read ahead in the background, in order and never too far."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from dermlens.errors import ImageError
from dermlens.inference import storage
from dermlens.inference.listing import BYTES_AN_IMAGE, Source, Unit
from dermlens.inference.shards import read_tar

READ_AHEAD = 32
FETCH_THREADS = 16

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One image of a unit.

    Attributes:
        unit, row: number of the unit, and the item's place in it.
        name: what its row is called.
        source: a local path, bytes, or why there are none.
        weight: how much of the job it is, in the units of `Source.weight`.
    """

    unit: int
    row: int
    name: str
    source: str | bytes | ImageError
    frame_aspect: float | None
    weight: float


def read_items(work: Iterable[tuple[Unit, int]], max_bytes: int) -> Generator[Item]:
    """Yield the items of (unit, how many of its first rows to pass over), one after the other.

    At most about `READ_AHEAD` images are held. Close the generator to stop reading.
    """
    fetcher = storage.Fetcher(max_bytes)
    with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="dermlens-fetch") as pool:
        for unit, skip in work:
            if unit.tar is not None:
                yield from _read_ahead(_tar_items(unit, unit.tar, skip, max_bytes))
            else:
                yield from _files(unit, skip, fetcher, pool)


def _tar_items(unit: Unit, tar: Source, skip: int, max_bytes: int) -> Iterator[Item]:
    before = 0
    for row, (name, data, offset) in enumerate(read_tar(tar.path, max_bytes)):
        if row >= skip:
            weight = max(0, offset - before) / BYTES_AN_IMAGE
            yield Item(unit.number, row, name, data, tar.frame_aspect, weight)
        before = max(before, offset)


def _files(unit: Unit, skip: int, fetcher: storage.Fetcher, pool: ThreadPoolExecutor) -> Iterator[Item]:
    waiting: deque[tuple[int, Source, Future[bytes | ImageError] | None]] = deque()
    left = enumerate(islice(unit.sources, skip, None), skip)
    while True:
        for row, source in islice(left, READ_AHEAD - len(waiting)):
            far = storage.is_url(source.path)
            waiting.append((row, source, pool.submit(fetcher.fetch, source.path) if far else None))
        if not waiting:
            return
        row, source, future = waiting.popleft()
        data = source.path if future is None else future.result()
        yield Item(unit.number, row, source.path, data, source.frame_aspect, source.weight)


def _read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items that a background thread reads; at most `READ_AHEAD` wait."""
    ready: queue.Queue[T | _End] = queue.Queue(READ_AHEAD)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, ready, stopped), name="dermlens-read", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None


def _fill(items: Iterator[T], ready: queue.Queue[T | _End], stopped: threading.Event) -> None:
    def put(item: T | _End) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    try:
        for item in items:
            if not put(item):
                return
        put(_End())
    except BaseException as error:  # it belongs to the reader of the items
        put(_End(error))
