"""Requests from many clients, answered in small batches by a few threads, with a queue that cannot grow.

Small files can hold very many pixels, so what is decoded at one time is bounded by pixels as well: large images wait
for each other. A queue that is full says so at once: a client that is told to come back in a second is served better
than one that waits behind fifty others, and whoever is let in is answered quickly.
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
WORKERS = 2  # while one waits for the network, the other reads the next images


@dataclass(eq=False)
class _Job:
    """One image to be answered, or one call about an image to be made (then `call` is set)."""

    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    image: bytes = b""
    name: str = ""
    call: Callable[[], Any] | None = None
    outcome: Any = field(default=None, init=False)


class Batcher:
    """Hands images from the event loop to worker threads.

    Args:
        predictor: answers; its `predict_many` is called from several threads.
        queue_images: how many images may wait or run at once.
        batch_images: how many go through the network together.
        on_batch: told the size of every batch.
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
        self.pending = 0  # waiting or running, until a thread lets go of it; changed under `_ready`
        self.open()

    def open(self) -> None:
        """Start the threads, unless they run."""
        if self._closed:
            self._closed = False
            self._threads = [
                threading.Thread(target=self._work, name=f"dermlens-serve-{n}", daemon=True) for n in range(WORKERS)
            ]
            for thread in self._threads:
                thread.start()

    @property
    def alive(self) -> bool:
        """Whether every thread still works."""
        return all(thread.is_alive() for thread in self._threads)

    def admit(self) -> None:
        """Say whether a request may come, whatever its size: else one of many images would never find room.

        Raises:
            Problem: `queue_full`; `draining` after `close`.
        """
        if self._closed:
            raise Problem("draining", "This server has stopped answering.", retry_after_s=2)
        if self.pending >= self._queue_images:
            raise Problem("queue_full", "As many images wait as this server lets wait.", retry_after_s=1)

    async def predict(self, images: list[bytes], names: list[str]) -> list[Prediction]:
        """Answer for images, in their order.

        Raises:
            Problem: `queue_full`.
        """
        self.admit()
        loop = asyncio.get_running_loop()
        jobs = [_Job(loop.create_future(), loop, image, name) for image, name in zip(images, names, strict=True)]
        return list(await self._run(jobs))

    async def call(self, function: Callable[[], Any], image: bytes = b"") -> Any:
        """Run a function that reads `image` in its turn; it counts as one image.

        Raises:
            Problem: `queue_full`; and whatever the function raises.
        """
        self.admit()
        loop = asyncio.get_running_loop()
        return (await self._run([_Job(loop.create_future(), loop, image, call=function)]))[0]

    async def _run(self, jobs: list[_Job]) -> list[Any]:
        with self._ready:
            self.pending += len(jobs)
            self._jobs.extend(jobs)
            self._ready.notify(len(jobs))
        return await asyncio.gather(*(job.future for job in jobs))

    def close(self) -> None:
        """Answer what waits, then stop the threads."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    def _work(self) -> None:
        while batch := self._take():
            try:
                self._on_batch(len(batch))
                self._answer(batch)
            except Exception as error:  # a thread that ends here would never be replaced
                for job in batch:
                    job.outcome = error if job.outcome is None else job.outcome
            with self._ready:
                self.pending -= len(batch)
            _deliver(batch)

    def _take(self) -> list[_Job]:
        """Wait for work; return up to a batch of images, or one call, or nothing when the end has come."""
        with self._ready:
            while True:
                while self._jobs and self._jobs[0].future.cancelled():
                    self._jobs.popleft()
                    self.pending -= 1
                if self._jobs or self._closed:
                    break
                self._ready.wait()
            batch: list[_Job] = []
            while self._jobs and len(batch) < self._batch_images:
                if batch and self._jobs[0].call is not None:
                    break
                batch.append(self._jobs.popleft())
                if batch[-1].call is not None:
                    break
            return batch

    def _answer(self, batch: list[_Job]) -> None:
        for group, pixels in _groups(batch, self._pixels.pixels):
            self._ask(group, pixels)

    def _ask(self, group: list[_Job], pixels: int) -> None:
        """Set the outcome of every job that somebody still waits for."""
        with self._pixels.hold(pixels):
            group = [job for job in group if not job.future.cancelled()]
            if not group or self._try(group):
                return
        for job in group:
            self._ask([job], _pixels_of(job.image))

    def _try(self, group: list[_Job]) -> bool:
        """Answer a group together; False when it failed and its jobs are to be asked one by one."""
        outcomes: list[Any]
        call = group[0].call
        try:
            if call is not None:
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
    """Width x height by the header; 0 for what is refused before it is decoded."""
    try:
        header = read_header(image, "The image")
    except ImageError:
        return 0
    return header.width_px * header.height_px


def _deliver(batch: list[_Job]) -> None:
    """Give the outcomes to the event loops that wait for them."""
    for loop in {job.loop for job in batch}:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_resolve, [job for job in batch if job.loop is loop])


def _resolve(batch: list[_Job]) -> None:
    for job in batch:
        if job.future.done():
            continue
        if isinstance(job.outcome, Exception):
            job.future.set_exception(job.outcome)
        else:
            job.future.set_result(job.outcome)
