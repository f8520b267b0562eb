"""Images from many clients, answered in small batches by a few threads, with a queue that cannot grow.

A full queue refuses at once: a client that comes back after a second gets its answer sooner than one that waits behind
fifty others. Small files can hold very many pixels, so the pixels that are decoded at one time are limited as well.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dermlens.data.header import read_header
from dermlens.errors import ImageError
from dermlens.inference.prediction import Prediction
from dermlens.inference.predictor import PixelBudget, Predictor
from dermlens.serving.problems import Problem

PIXELS_AT_ONCE = 16_000_000  # decoded at one time, or one image alone if it has more
THREADS = 2  # while one waits for the network, the other reads the next images


@dataclass(eq=False)
class _Job:
    """One image to be answered, or one call about an image (then `call` is set)."""

    image: bytes
    name: str = ""
    call: Callable[[], Any] | None = None
    future: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    outcome: Any = None


class Batcher:
    """Passes images from the event loop to threads.

    Args:
        predictor: its `predict_many` is called from several threads.
        queue_images: how many images may wait or run at once.
        batch_images: how many go through the network together.
        on_batch: called with the size of every batch.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        queue_images: int,
        batch_images: int,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._predictor = predictor
        self._queue_images = queue_images
        self._batch_images = batch_images
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._ready = threading.Condition()
        self._pixels = PixelBudget(PIXELS_AT_ONCE)
        self._closed = True
        self._threads: list[threading.Thread] = []
        self.pending = 0  # images that wait or run, also when their client has left; changed under `_ready`
        self.open()

    def open(self) -> None:
        """Start the threads, unless they run."""
        if self._closed:
            self._closed = False
            names = [f"dermlens-serve-{n}" for n in range(THREADS)]
            self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
            for thread in self._threads:
                thread.start()

    def close(self) -> None:
        """Answer what waits, then stop the threads."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    @property
    def alive(self) -> bool:
        """Whether every thread still works."""
        return all(thread.is_alive() for thread in self._threads)

    def admit(self) -> None:
        """Raise Problem unless one more request may come; its size does not matter, or a large one would never fit."""
        if self._closed:
            raise Problem("draining", "The server is stopping and takes no more images.", retry_after_s=2)
        if self.pending >= self._queue_images:
            raise Problem("queue_full", f"{self.pending} images wait already, the most allowed.", retry_after_s=1)

    async def predict(self, images: list[bytes], names: list[str]) -> list[Prediction]:
        """Answer for images, in their order. Raises Problem as `admit` does."""
        self.admit()
        return await self._run([_Job(image, name) for image, name in zip(images, names, strict=True)])

    async def call(self, function: Callable[[], Any], image: bytes = b"") -> Any:
        """Call a function that reads `image`; it counts as one image. Raises Problem as `admit` does."""
        self.admit()
        return (await self._run([_Job(image, call=function)]))[0]

    async def _run(self, jobs: list[_Job]) -> list[Any]:
        with self._ready:
            self.pending += len(jobs)
            self._jobs.extend(jobs)
            self._ready.notify(len(jobs))
        return list(await asyncio.gather(*(job.future for job in jobs)))

    def _work(self) -> None:
        while batch := self._take():
            try:
                self._on_batch(len(batch))
                for group, pixels in _groups(batch, self._pixels.pixels):
                    self._answer(group, pixels)
            except Exception as error:  # nothing would replace a thread that ends here
                for job in batch:
                    job.outcome = error if job.outcome is None else job.outcome
            with self._ready:
                self.pending -= len(batch)
            for job in batch:
                with suppress(RuntimeError):  # the event loop is closed: nobody waits
                    job.future.get_loop().call_soon_threadsafe(_resolve, job)

    def _take(self) -> list[_Job]:
        """Wait for work; return some images, or one call, or nothing after `close`."""
        with self._ready:
            while True:
                while self._jobs and self._jobs[0].future.cancelled():
                    self._jobs.popleft()
                    self.pending -= 1
                if self._jobs or self._closed:
                    break
                self._ready.wait()
            batch: list[_Job] = []
            while self._jobs and len(batch) < self._batch_images and not (batch and self._jobs[0].call):
                batch.append(self._jobs.popleft())
                if batch[-1].call:
                    break
            return batch

    def _answer(self, group: list[_Job], pixels: int) -> None:
        """Set the outcome of every job whose client still waits; if they fail together, one by one."""
        with self._pixels.hold(pixels):
            group = [job for job in group if not job.future.cancelled()]
            if not group or self._try(group):
                return
        for job in group:
            self._answer([job], _pixels_of(job.image))

    def _try(self, group: list[_Job]) -> bool:
        """Set the outcomes of a group; False when several jobs failed together."""
        outcomes: list[Any]
        try:
            if call := group[0].call:
                outcomes = [call()]
            else:
                outcomes = list(self._predictor.predict_many([j.image for j in group], names=[j.name for j in group]))
        except Exception as error:
            if len(group) > 1:
                return False
            outcomes = [error]
        for job, outcome in zip(group, outcomes, strict=True):
            job.outcome = outcome
        return True


def _groups(batch: list[_Job], most: int) -> Iterator[tuple[list[_Job], int]]:
    """Cut a batch into groups of at most so many pixels, or of one image."""
    group: list[_Job] = []
    total = 0
    for job in batch:
        pixels = _pixels_of(job.image)
        if group and total + pixels > most:
            yield group, total
            group, total = [], 0
        group.append(job)
        total += pixels
    yield group, total


def _pixels_of(image: bytes) -> int:
    """Width x height from the header; 0 for a file that is refused before it is decoded."""
    try:
        header = read_header(image, "The image")
    except ImageError:
        return 0
    return header.width_px * header.height_px


def _resolve(job: _Job) -> None:
    if job.future.done():
        return
    if isinstance(job.outcome, Exception):
        job.future.set_exception(job.outcome)
    else:
        job.future.set_result(job.outcome)
