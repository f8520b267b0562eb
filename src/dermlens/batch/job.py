"""A million images: any listing -> a Parquet data set with one row for every input, resumable to the row.

    listing -> units -> items (read ahead) -> Predictor.predict_many (decoded ahead) -> rows -> part files -> manifest

Every arrow is bounded, so memory does not grow with the number of images. `cluster/batch.py` runs the same `answer` in
many processes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from dermlens.batch import storage
from dermlens.batch.output import Folder, Ledger, Part, PartWriter
from dermlens.batch.sources import BYTES_AN_IMAGE, Listing, Source, Unit, read_listing, read_tar
from dermlens.bundle.bundle import Bundle, find_bundle, load_bundle
from dermlens.bundle.case_mix import CaseMix
from dermlens.data.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from dermlens.errors import ImageError, StorageError, UsageError
from dermlens.inference import answers
from dermlens.inference.prediction import Prediction
from dermlens.inference.predictor import Predictor
from dermlens.signals import Stop, defer_interrupt

DEFAULT_PART_ROWS = 10_000
FIRST_VISIBLE_S, VISIBLE_EVERY_S = 0.25, 8.0
READ_AHEAD, FETCH_THREADS = 32, 16


@dataclass(frozen=True)
class Settings:
    """What changes the rows or how they are cut into parts; a resumed job must have the same.

    Attributes:
        case_mix: as for `Predictor`; the model's own when None.
    """

    part_rows: int = DEFAULT_PART_ROWS
    embedding: bool = False
    max_bytes: int = DEFAULT_MAX_BYTES
    max_pixels: int = DEFAULT_MAX_PIXELS
    case_mix: str | CaseMix | None = None

    def at_mix(self, bundle: Bundle) -> Settings:
        """Return them with the case mix itself in place of its name."""
        return replace(self, case_mix=bundle.mix(self.case_mix))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | ({"case_mix": self.case_mix.as_dict()} if isinstance(self.case_mix, CaseMix) else {})

    def predictor(self, folder: str | Path, *, threads: int | None = None) -> Predictor:
        """Return the predictor that gives such rows."""
        bounds = {"max_bytes": self.max_bytes, "max_pixels": self.max_pixels}
        return Predictor(folder, threads=threads, case_mix=self.case_mix, **bounds)


@dataclass(frozen=True)
class Progress:
    """What has just been done: rows, how many of them errors, and their weight in the listing's units."""

    rows: int
    errors: int
    weight: float


Report = Callable[[Progress], None]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Job:
    """One shard of a batch, ready to run."""

    listing: Listing
    bundle: Bundle
    settings: Settings
    ledger: Ledger

    def work(self) -> Iterator[tuple[Unit, int]]:
        """Yield (unit, rows of it that are done) for each unit that is not finished."""
        for unit in self.listing.units(self.settings.part_rows):
            rows, finished = self.ledger.progress(unit.number)
            if not finished:
                yield unit, rows

    def weight_done(self) -> float:
        """About how many images of the listing were done before."""
        return self.listing.weight - sum(unit.weight - min(rows, unit.weight) for unit, rows in self.work())


@dataclass(frozen=True)
class Summary:
    """How a run ended: `rows` and `errors` of the whole folder's shard, `new_rows` in `seconds` by this run."""

    finished: bool
    rows: int
    errors: int
    parts: int
    new_rows: int
    seconds: float


Engine = Callable[[Job, Stop, Report], bool]
"""Does the work, recording each part in `job.ledger`; returns False when it stopped before the end."""


@contextmanager
def open_job(
    inputs: Iterable[str],
    out: str | Path,
    *,
    model: str | Path = "default",
    settings: Settings | None = None,
    images: str | None = None,
    frame_aspect: float | None = None,
    shard: tuple[int, int] = (1, 1),
    resume: bool = False,
) -> Iterator[Job]:
    """List the inputs and read what `out` holds; until the end no other process may work on it.

    Args:
        inputs: folders, globs, tables, lists, tar shards, images; local paths or fsspec URLs.
        out: folder or fsspec URL of the Parquet data set.
        shard: (i, n), i from 1: every n-th source from the i-th on. All shards may write to one folder.
        resume: continue what `out` holds; start where there is nothing.
    Raises:
        UsageError: no images, a wrong shard, or `out` holds a batch (another one, or this one without `resume`); a
            case mix that is none of the model's.
    """
    settings = settings or Settings()
    if not 1 <= shard[0] <= shard[1]:
        raise UsageError(f"The shard is {shard[0]}/{shard[1]}. Allowed: 1/n to n/n.", remedy="Count shards from 1.")
    folder = Folder.of(str(out), shard)
    bundle = load_bundle(find_bundle(model))
    settings = settings.at_mix(bundle)
    listing = read_listing(map(str, inputs), images=images, frame_aspect=frame_aspect, shard=shard)
    common: dict[str, Mapping[str, Any]] = {
        "model": {"sha256": bundle.sha256, "name": bundle.name, "version": bundle.version},
        "inputs": {"sha256": listing.sha256, "sources": listing.sources},
        "settings": settings.as_dict(),
    }
    name = hashlib.sha256(json.dumps({**common, "shards": shard[1]}, sort_keys=True).encode()).hexdigest()[:16]
    ledger = Ledger(folder, {**common, "shard": {"index": shard[0], "count": shard[1]}}, name)
    with folder.locked():
        ledger.begin(resume=resume)
        ledger.write("running")
        yield Job(listing, bundle, settings, ledger)


def run_job(job: Job, engine: Engine | None = None, report: Report = lambda progress: None) -> Summary:
    """Answer for everything that is not yet done; Ctrl-C or SIGTERM stops between two answers and keeps the rows.

    Raises StorageError when results cannot be written or inputs cannot be reached; the rows so far stay.
    """
    before, begun, finished = job.ledger.rows, time.monotonic(), False
    with defer_interrupt() as stop:
        try:
            finished = (engine or run_local)(job, stop, report)
        finally:
            seconds = time.monotonic() - begun
            rows = job.ledger.rows - before
            last = {"rows": rows, "seconds": round(seconds, 3)}
            with nullcontext() if finished else suppress(StorageError):
                job.ledger.write("finished" if finished else "interrupted", last_run=last)
    return Summary(finished, job.ledger.rows, job.ledger.errors, len(job.ledger.parts), rows, seconds)


def run_local(job: Job, stop: Stop, report: Report, clock: Clock = time.monotonic) -> bool:
    """The engine of one process: the network on all cores, files read and decoded in threads."""
    settings, ledger = job.settings, job.ledger
    predictor = settings.predictor(job.bundle.folder)
    for part in answer(predictor, job.work(), settings, ledger.folder, ledger.job, stop, report, clock):
        ledger.record(part)
    return not stop.requested


def answer(
    predictor: Predictor,
    work: Iterable[tuple[Unit, int]],
    settings: Settings,
    folder: Folder,
    job: str,
    stop: Stop,
    report: Report,
    clock: Clock = time.monotonic,
) -> Iterator[Part]:
    """Answer for units of work and yield a part each time that the folder shows more of it, up to `part_rows` rows."""
    codes, schema = predictor.bundle.codes, answers.schema(predictor.bundle.codes, embedding=settings.embedding)
    writer, pace = None, _Pace(clock)
    with closing(read_items(work, settings.max_bytes)) as items:
        for item, prediction in _answers(predictor, items):
            if writer is not None and (writer.unit != item.unit or writer.rows == settings.part_rows):
                yield pace.publish(writer, last=writer.unit != item.unit)
                writer = None
            if writer is None:
                writer = PartWriter(folder, schema, job, item.unit, item.row, settings.part_rows)
            writer.add(prediction, answers.row(prediction, codes, embedding=settings.embedding))
            report(Progress(1, int(prediction.status == "error"), item.weight))
            if stop.requested:
                break
            if pace.is_due():
                yield pace.publish(writer, last=False)
        if writer is not None:
            yield pace.publish(writer, last=not stop.requested)


class _Pace:
    """When rows become visible: 0.25, 0.5, 1, 2, 4, 8 s after the first answer, then every 8 s; a kill costs no more.

    Publishing takes at most a third of the time, so huge parts are shown less often. Ask `is_due` after each answer.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun: float | None = None
        self._shown = self._took_s = 0.0

    def is_due(self) -> bool:
        now = self._clock()
        if self._begun is None:
            self._begun = self._shown = now
        wait_s = min(VISIBLE_EVERY_S, max(FIRST_VISIBLE_S, self._shown - self._begun))
        return now - self._shown >= max(wait_s, 2 * self._took_s)

    def publish(self, writer: PartWriter, *, last: bool) -> Part:
        begun = self._clock()
        part = writer.publish(last=last)
        self._shown = self._clock()
        self._took_s = self._shown - begun
        return part


def _answers(predictor: Predictor, items: Iterator[Item]) -> Iterator[tuple[Item, Prediction]]:
    """Pair every item with its answer; the items in between are those that are being decoded."""
    waiting: deque[Item] = deque()

    def sources() -> Iterator[str | bytes | ImageError]:
        for item in items:
            waiting.append(item)
            yield item.source

    names = (waiting[-1].name for _ in repeat(None))
    aspects = (waiting[-1].frame_aspect for _ in repeat(None))
    for prediction in predictor.predict_many(sources(), names=names, frame_aspects=aspects):
        yield waiting.popleft(), prediction


@dataclass(frozen=True)
class Item:
    """One image of a unit: its place `row` there, and a local path, bytes, or why there are none."""

    unit: int
    row: int
    name: str
    source: str | bytes | ImageError
    frame_aspect: float | None
    weight: float


def read_items(work: Iterable[tuple[Unit, int]], max_bytes: int) -> Generator[Item]:
    """Yield the items of (unit, how many of its first rows to skip), one after the other.

    At most about `READ_AHEAD` images are held. Close the generator to stop reading.
    """
    fetcher = storage.Fetcher(max_bytes)
    with ThreadPoolExecutor(1, "dermlens-read") as reader, ThreadPoolExecutor(FETCH_THREADS, "dermlens-fetch") as pool:
        for unit, skip in work:
            if unit.tar is not None:
                yield from _read_ahead(_tar_items(unit, unit.tar, skip, max_bytes), reader)
            else:
                yield from _files(unit, skip, fetcher, pool)


def _tar_items(unit: Unit, tar: Source, skip: int, max_bytes: int) -> Iterator[Item]:
    before = 0
    for row, (name, data, offset) in enumerate(read_tar(tar.path, max_bytes)):
        if row >= skip:
            weight = max(0, offset - before) / BYTES_AN_IMAGE
            yield Item(unit.number, row, name, data, tar.frame_aspect, weight)
        before = max(before, offset)


def _read_ahead(items: Iterator[Item], reader: ThreadPoolExecutor) -> Iterator[Item]:
    """Yield items that the one thread of `reader` reads; at most `READ_AHEAD` wait."""
    ready = deque(reader.submit(next, items, None) for _ in range(READ_AHEAD))
    try:
        while (item := ready.popleft().result()) is not None:
            ready.append(reader.submit(next, items, None))
            yield item
    finally:
        for future in ready:
            future.cancel()


def _files(unit: Unit, skip: int, fetcher: storage.Fetcher, pool: ThreadPoolExecutor) -> Iterator[Item]:
    waiting: deque[tuple[int, Source, Future[bytes | ImageError] | None]] = deque()
    left = enumerate(islice(unit.sources, skip, None), skip)
    while True:
        for row, source in islice(left, READ_AHEAD - len(waiting)):
            future = pool.submit(fetcher.fetch, source.path) if storage.is_url(source.path) else None
            waiting.append((row, source, future))
        if not waiting:
            return
        row, source, future = waiting.popleft()
        data = source.path if future is None else future.result()
        yield Item(unit.number, row, source.path, data, source.frame_aspect, source.weight)
