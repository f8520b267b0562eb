"""What each stage of a training learns from: embeddings for the head, cached trunk features for the upper blocks,
fresh views of the images for the whole network; and plain inputs of the select role to score on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.training.features import DECODE_THREADS
from dermlens.training.recipe import Recipe
from dermlens.training.views import Draw, Draws, fresh_view, larger_copy, plain_view

EVAL_BATCH = 128
EVAL_BATCH_PIXELS = 32
FRESH_VIEWS = 2**31 - 1


@dataclass(frozen=True)
class Feed:
    """Inputs of one stage.

    Attributes:
        load: a draw to the inputs of one step, (batch, ...).
        labels: int64 (n,) of the images that are trained on.
        view_count: views to draw from.
        select: makes the plain inputs of the select role, batch after batch in order.
        select_labels: int64 (m,).
    """

    load: Callable[[Draw], np.ndarray]
    labels: np.ndarray
    view_count: int
    select: Callable[[], Iterator[np.ndarray]]
    select_labels: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Inputs (n, ...), one-hot targets float32 (n, classes), and the mixup share float32 (n,)."""

    inputs: np.ndarray
    targets: np.ndarray
    mix: np.ndarray


def from_arrays(
    train: np.ndarray, labels: np.ndarray, select: np.ndarray, select_labels: np.ndarray, *, batch: int = EVAL_BATCH
) -> Feed:
    """Feed from arrays in memory or mapped: train (n, views, ...), select (m, ...), scored `batch` at a time."""

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, len(select), batch):
            yield np.ascontiguousarray(select[start : start + batch])

    return Feed(lambda draw: train[draw.rows, draw.views], labels, train.shape[1], parts, select_labels)


def from_images(
    train: Sequence[Record],
    hashes: Sequence[str],
    labels: np.ndarray,
    select: Sequence[Record],
    select_labels: np.ndarray,
    spec: InputSpec,
    *,
    seed: int,
    artefacts: float = 0.0,
    batch: int = EVAL_BATCH_PIXELS,
    source: Callable[[int], np.ndarray] | None = None,
) -> Feed:
    """Feed of pixels, uint8 (n, size, size, 3): every draw is a view that was never seen before.

    The select role is scored `batch` images at a time. `source` gives the `larger_copy` of a row of `train`; without
    it, each draw decodes its image anew.
    """
    opened = source or (lambda row: larger_copy(train[row], spec))
    pool = ThreadPoolExecutor(max_workers=DECODE_THREADS, thread_name_prefix="dermlens-views")

    def load(draw: Draw) -> np.ndarray:
        def one(row: int, view: int) -> np.ndarray:
            found = opened(row)
            return fresh_view(found, spec.size_px, index=1 + view, seed=seed, key=hashes[row], artefacts=artefacts)

        return np.stack(list(pool.map(one, draw.rows.tolist(), draw.views.tolist())))

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, len(select), batch):
            records = select[start : start + batch]
            yield np.stack(list(pool.map(lambda record: plain_view(record, spec), records)))

    return Feed(load, labels, FRESH_VIEWS, parts, select_labels)


def batches(
    feed: Feed, recipe: Recipe, classes: int, *, mixup: float, salt: int, steps: range
) -> Generator[Batch, None, None]:
    """Yield the batches of `steps`, loaded a few ahead in the background; each follows from its number alone."""
    draws = Draws(
        feed.labels,
        classes=classes,
        class_balance=recipe.class_balance,
        view_count=feed.view_count,
        batch_size=recipe.batch_size,
        mixup=mixup,
        seed=recipe.seed + salt,
    )
    one_hot = np.eye(classes, dtype=np.float32)

    def made() -> Iterator[Batch]:
        for step in steps:
            draw = draws.at(step)
            yield Batch(feed.load(draw), one_hot[feed.labels[draw.rows]], draw.mix)

    return _prefetch(made())


def _prefetch(items: Iterator[Any], ahead: int = 4) -> Generator[Any, None, None]:
    """Run an iterator in a daemon thread, a few items ahead; an error there is raised here."""
    channel: queue.Queue[Any] = queue.Queue(ahead)
    end, stop = object(), threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                channel.put(item, timeout=0.5)
                return
            except queue.Full:
                pass

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(end)
        except Exception as error:
            put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := channel.get()) is not end:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()
