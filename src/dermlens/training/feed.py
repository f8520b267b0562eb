"""What each stage of a training learns from, and the order in which its images are drawn.

Embeddings for the head, cached trunk features for the upper blocks, fresh views of the images for the whole network;
and plain inputs of the select role to score on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.data.images import InputSpec
from dermlens.training.features import DECODE_THREADS
from dermlens.training.material import Material
from dermlens.training.recipe import Recipe
from dermlens.training.views import fresh_view, larger_copy, plain_view

EVAL_BATCH, EVAL_BATCH_PIXELS = 128, 32  # scored at once, if the memory of two training steps allows
FRESH_VIEWS = 2**31 - 1


def sampling_weights(labels: np.ndarray, classes: int, class_balance: float) -> np.ndarray:
    """Return the probability with which each image is drawn, float64 (n,), sums to 1.

    An image of a class with n_c images has weight n_c ** -class_balance: 0 keeps the data's own frequencies, 1 draws
    all classes equally often.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    weights = np.maximum(counts, 1)[labels] ** -class_balance
    return weights / weights.sum()


def effective_prior(labels: np.ndarray, classes: int, class_balance: float) -> np.ndarray:
    """Return the class frequencies in the batches under `sampling_weights`, float64 (classes,)."""
    return np.bincount(labels, sampling_weights(labels, classes, class_balance), minlength=classes)


@dataclass(frozen=True)
class Draw:
    """What one step learns from: rows of images, a view of each, and the share that mixup leaves of each."""

    rows: np.ndarray
    views: np.ndarray
    mix: np.ndarray


class Draws:
    """The order in which images are drawn: each step's draw follows from seed and step alone.

    So a training that resumes draws what an uninterrupted one would have drawn.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        classes: int,
        class_balance: float,
        view_count: int,
        batch_size: int,
        mixup: float,
        seed: int,
    ) -> None:
        self._until = np.cumsum(sampling_weights(labels, classes, class_balance))
        self._until[-1] = 1.0
        self._view_count, self._batch_size, self._mixup, self._seed = view_count, batch_size, mixup, seed

    def at(self, step: int) -> Draw:
        """Return the draw of a step: int64 rows and views and float32 mix, each (batch_size,)."""
        rng = np.random.default_rng([self._seed, 0xD7A5, step])
        rows = np.searchsorted(self._until, rng.random(self._batch_size), side="right")
        views = rng.integers(0, self._view_count, size=self._batch_size)
        mix = np.ones(self._batch_size, np.float32)
        if self._mixup > 0:
            drawn = rng.beta(self._mixup, self._mixup, self._batch_size)
            mix = np.maximum(drawn, 1 - drawn).astype(np.float32)
        return Draw(rows, views, mix)


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
    material: Material,
    train: np.ndarray,
    select: np.ndarray,
    spec: InputSpec,
    recipe: Recipe,
    copy_of: Callable[[int], np.ndarray] | None = None,
) -> Feed:
    """Feed of pixels, uint8 (n, size, size, 3): every draw is a new view, and select is scored plain.

    Args:
        train, select: rows of the material.
        copy_of: gives the `larger_copy` of a row of `train`, by its place there; without it, each draw decodes.
    """
    records, hashes = material.pick(train), [material.hashes[i] for i in train]
    scored, batch = material.pick(select), min(EVAL_BATCH_PIXELS, 2 * recipe.batch_size)
    copy_of = copy_of or (lambda place: larger_copy(records[place], spec))
    pool = ThreadPoolExecutor(max_workers=DECODE_THREADS, thread_name_prefix="dermlens-views")

    def one(place: int, view: int) -> np.ndarray:
        settings = {"seed": recipe.seed, "key": hashes[place], "artefacts": recipe.artefacts}
        return fresh_view(copy_of(place), spec.size_px, index=1 + view, **settings)

    def load(draw: Draw) -> np.ndarray:
        return np.stack(list(pool.map(one, draw.rows.tolist(), draw.views.tolist())))

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, len(scored), batch):
            yield np.stack(list(pool.map(lambda record: plain_view(record, spec), scored[start : start + batch])))

    return Feed(load, material.labels[train], FRESH_VIEWS, parts, material.labels[select])


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
