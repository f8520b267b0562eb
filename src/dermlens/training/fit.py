"""One training loop for every stage: AdamW, warm-up and cosine, averaged weights, balanced draws, checkpoints.

The head is trained on frozen embeddings, the upper blocks on cached trunk features, the whole network on fresh views;
only feed and model differ. The averaged weights are scored, and the best of them stay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dermlens.errors import WeightsError
from dermlens.evaluation.metrics import balanced_accuracy_score, macro_auc_score
from dermlens.reporting.plots import merit
from dermlens.signals import defer_interrupt
from dermlens.training.checkpoint import Checkpoint, Saved, assign, values_of
from dermlens.training.feed import Feed, batches
from dermlens.training.optimiser import make_averages, make_optimiser, rate_at
from dermlens.training.recipe import Recipe
from dermlens.training.step import Mirror, answer_prior, logits_of, make_step
from dermlens.training.watch import Watch

STOP_NOTICE = "\nStopping after this step (a finished epoch is scored first). Press Ctrl-C again to stop at once.\n"


@dataclass
class History:
    """One row for each epoch, the state before the first among them, and how the training ended.

    `stopped` says why a training ended before its last epoch.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False
    stopped: str | None = None

    @property
    def best_score(self) -> float:
        """Balanced accuracy on select of the best epoch so far, 0..1; -1 before the first."""
        return self.rows[self.best_epoch]["select_balanced_accuracy"] if self.rows else -1.0


@dataclass(frozen=True)
class Stage:
    """A part of the training: its name in checkpoints, how long, how fast, and the seed's salt for its draws."""

    name: str
    epochs: int
    learning_rate: float
    mixup: float
    salt: int
    patience: int = 0


def head_training(recipe: Recipe, embeddings: np.ndarray) -> Stage:
    """Return the stage of a resolved recipe that trains the last layer; features of large spread need a smaller rate.

    `embeddings` are those of the training images, (n, d).
    """
    patience = recipe.patience if recipe.fine_tune == "head" else 0
    rate = recipe.head_learning_rate / max(1.0, float(embeddings.std()))
    return Stage("head", recipe.head_epochs, rate, mixup=0.0, salt=0, patience=patience)


def fine_tuning(recipe: Recipe) -> Stage:
    """Return the stage of a resolved recipe that follows the head's: of the upper blocks, or of the whole network."""
    return Stage("tune", recipe.epochs, recipe.learning_rate, recipe.mixup, salt=1, patience=recipe.patience)


def fit(
    model: keras.Model,
    feed: Feed,
    stage: Stage,
    recipe: Recipe,
    codes: tuple[str, ...],
    watch: Watch,
    checkpoint: Checkpoint | None = None,
    saved: Saved | None = None,
    devices: Sequence[str] = (),
) -> History:
    """Train `model` and leave it with the best averaged weights on select, by `reporting.plots.merit`.

    Args:
        model: inputs of the feed -> logits (n, classes), or a list that begins with them. Its trainable variables
            are trained.
        codes: the classes, in the order of the logits.
        checkpoint: where the state is saved now and then; None saves none.
        saved: a state of this stage to resume from, step for step.
        devices: names such as "GPU:0" over which each batch is spread, where there is more than one.

    Returns:
        The history. Ctrl-C ends training between two steps, with a checkpoint, and `interrupted` set.
    """
    loop = _Loop(model, feed, stage, recipe, codes, watch, checkpoint, devices)
    if saved is None:
        loop.score_epoch(0, {})
    else:
        loop.restore(saved)
    with defer_interrupt(STOP_NOTICE) as stop:
        loop.run(lambda: stop.requested)
    assign(model.weights, loop.best)
    return loop.history


@dataclass
class _Loop:
    model: keras.Model
    feed: Feed
    stage: Stage
    recipe: Recipe
    codes: tuple[str, ...]
    watch: Watch
    checkpoint: Checkpoint | None
    devices: Sequence[str]

    def __post_init__(self) -> None:
        model, feed, recipe, classes = self.model, self.feed, self.recipe, len(self.codes)
        self.history = History()
        self.step = 0
        self.steps_per_epoch = max(1, math.ceil(len(feed.labels) / recipe.batch_size))
        self.total = self.steps_per_epoch * self.stage.epochs
        self.losses: list[float] = []
        self.seconds = 0.0
        self.best: list[np.ndarray] = []
        self.ema = make_averages(model)
        self.optimiser = make_optimiser(model, recipe)
        self.log_prior = np.log(answer_prior(feed.labels, classes, recipe))
        self._mirror = Mirror(model, self.devices, recipe.batch_size) if len(self.devices) > 1 else None
        self._train = make_step(model, recipe, self.optimiser, self.ema, feed.labels, classes, self._mirror)
        self._forward = tf.function(
            lambda x: logits_of(model(tf.cast(x, tf.float32), training=False)), jit_compile=False
        )

    def run(self, stop: Callable[[], bool]) -> None:
        if self._mirror is not None:
            self._mirror.copy_weights()
        left = (self.total - self.step) * self.recipe.batch_size
        with self.watch.stage(self.stage.name, left, step=self.step) as advance, closing(self._batches()) as source:
            start = time.monotonic()
            for batch in source:
                rate = rate_at(self.step, self.total, self.stage.learning_rate, self.recipe.warmup_share)
                loss = float(self._train(batch.inputs, batch.targets, batch.mix, np.float32(rate)))
                if not math.isfinite(loss):
                    self._diverged(loss)
                    break
                self.losses.append(loss)
                self.step += 1
                self.seconds += time.monotonic() - start  # waiting for the batch included
                advance(len(batch.mix), loss)
                if self.step % self.steps_per_epoch == 0:
                    self._end_epoch(rate)
                if self._exhausted() or self.step == self.total:
                    break
                if stop():
                    self._interrupted()
                    break
                if self.checkpoint is not None and self.checkpoint.due():
                    self.save()
                start = time.monotonic()

    def _batches(self) -> Any:
        steps = range(self.step, 0 if self.history.stopped else self.total)
        return batches(
            self.feed, self.recipe, len(self.codes), mixup=self.stage.mixup, salt=self.stage.salt, steps=steps
        )

    def _diverged(self, loss: float) -> None:
        """End with the best epoch so far, or with an error where no epoch was an improvement."""
        what = f"the loss is {loss} after {self.step + 1} steps: the training has diverged"
        remedy = "Lower learning_rate in the recipe, for example to a third, and start again."
        if self.history.best_epoch == 0:
            raise WeightsError(f"{what[0].upper()}{what[1:]}.", remedy=remedy, code="diverged")
        self.history.stopped = f"{what}. {remedy} The best epoch before that is used"

    def _end_epoch(self, rate: float) -> None:
        seconds = max(self.seconds, 1e-9)
        extra = {
            "train_loss": float(np.mean(self.losses)),
            "images_per_s": self.steps_per_epoch * self.recipe.batch_size / seconds,
            "seconds": seconds,
            "learning_rate": rate,
        }
        self.losses, self.seconds = [], 0.0
        own = values_of(self.model.weights)
        assign(self.model.weights, values_of(self.ema))
        self.score_epoch(self.step // self.steps_per_epoch, extra)
        assign(self.model.weights, own)

    def score_epoch(self, epoch: int, extra: dict[str, float]) -> None:
        """Score the model as it stands on select, note it, and remember its weights when they are the best."""
        row = {"epoch": float(epoch), **self._scores(), **extra}
        rows = self.history.rows
        better = not rows or merit(row) > merit(rows[self.history.best_epoch])
        rows.append(row)
        if better:
            self.history.best_epoch = epoch
            self.best = values_of(self.model.weights)
        self.watch.epoch(self.stage.name, row, better=better)

    def _scores(self) -> dict[str, float]:
        labels = self.feed.select_labels
        logits = np.concatenate([self._forward(part).numpy() for part in self.feed.select()]).astype(np.float64)
        exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability = exponent / exponent.sum(axis=1, keepdims=True)
        decided = (logits - self.log_prior).argmax(axis=1)
        loss = -np.log(np.maximum(probability[np.arange(len(labels)), labels], 1e-12)).mean()
        recalls = {
            f"select_recall_{code}": float((decided[labels == i] == i).mean())
            for i, code in enumerate(self.codes)
            if (labels == i).any()
        }
        return {
            "select_loss": float(loss),
            "select_balanced_accuracy": float(balanced_accuracy_score(labels, decided)),
            "select_macro_auc": float(macro_auc_score(labels, probability)),
            **recalls,
        }

    def _exhausted(self) -> bool:
        """Stop early after several epochs without improvement; at the end of an epoch only."""
        epoch = self.step // self.steps_per_epoch
        waited = epoch - self.history.best_epoch
        if not self.stage.patience or self.step % self.steps_per_epoch or epoch >= self.stage.epochs:
            return False
        if waited >= self.stage.patience:
            best = self.history.rows[self.history.best_epoch]
            self.history.stopped = (
                f"stopped after epoch {epoch}: no improvement in {waited} epochs since epoch "
                f"{self.history.best_epoch} (on select: AUC {best['select_macro_auc']:.3f}, loss "
                f"{best['select_loss']:.3f})"
            )
        return self.history.stopped is not None

    def _interrupted(self) -> None:
        self.history.interrupted = True
        self.save()

    def save(self) -> None:
        """Write the checkpoint: everything the next step depends on; none of a training that has diverged."""
        finite = all(np.isfinite(v.numpy()).all() for v in self.ema if v.dtype.is_floating)
        if self.checkpoint is None or not finite:
            return
        arrays = {
            "model": values_of(self.model.variables),
            "optimiser": values_of(self.optimiser.variables),
            "average": values_of(self.ema),
            "best": self.best,
        }
        values = {
            "step": self.step,
            "losses": self.losses,
            "seconds": self.seconds,
            "rows": self.history.rows,
            "best_epoch": self.history.best_epoch,
        }
        self.checkpoint.save(self.stage.name, arrays, values)

    def restore(self, saved: Saved) -> None:
        """Resume from a saved state."""
        assign(self.model.variables, saved.arrays["model"])
        assign(self.optimiser.variables, saved.arrays["optimiser"])
        assign(self.ema, saved.arrays["average"])
        self.best = saved.arrays["best"]
        self.step = int(saved.values["step"])
        self.losses, self.seconds = list(saved.values["losses"]), float(saved.values["seconds"])
        self.history = History(rows=list(saved.values["rows"]), best_epoch=int(saved.values["best_epoch"]))
        self.watch.resumed(self.stage.name, self.step, self.total, self.history.rows)
        self._exhausted()
