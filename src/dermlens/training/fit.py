"""Head, then the upper blocks over the cached trunk: AdamW, warm-up and cosine, averaged weights, balanced draws.

The averaged weights are the trained ones; the statistics of batch normalisation are running averages of their own.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from dermlens.evaluation.metrics import balanced_accuracy_score, macro_auc_score
from dermlens.reporting.progress import track
from dermlens.training.pipeline import draws, effective_prior
from dermlens.training.recipe import Recipe

CLIP_NORM = 1.0
EVAL_BATCH = 128


@dataclass
class History:
    """One row for each epoch, and how the training ended."""

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False


def classifier(top: keras.Model, classes: int, dropout: float, seed: int) -> keras.Model:
    """Return cached features -> [logits, embedding, feature_map]: upper blocks, average pooling, dropout, linear."""
    feature_map = top.outputs[0]
    embedding = keras.layers.GlobalAveragePooling2D(name="embedding")(feature_map)
    dropped = keras.layers.Dropout(dropout, seed=seed, name="head_dropout")(embedding)
    logits = keras.layers.Dense(classes, name="logits", dtype="float32")(dropped)
    return keras.Model(top.inputs[0], [logits, embedding, feature_map], name="classifier")


def fit_head(model: keras.Model, embeddings: np.ndarray, labels: np.ndarray, recipe: Recipe, classes: int) -> None:
    """Train the last layer alone on frozen embeddings (n, d); seconds, since the network is not run."""
    dense = model.get_layer("logits")
    spread = float(embeddings.std()) or 1.0
    inputs = keras.Input((embeddings.shape[1],))
    head = keras.Sequential([inputs, keras.layers.Dropout(recipe.dropout, seed=recipe.seed), dense])
    steps = max(1, len(labels) // recipe.batch_size) * recipe.head_epochs
    step = _make_step(head, recipe, _optimiser(recipe, head), ema=None)
    order = draws(
        labels,
        classes=classes,
        class_balance=recipe.class_balance,
        view_count=1,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
    )
    for index in range(steps):
        rows, _ = next(order)
        rate = _rate(index, steps, recipe.head_learning_rate / max(1.0, spread), recipe.warmup_share)
        step(_tensor(embeddings[rows]), _targets(labels[rows], classes), tf.ones(len(rows)), tf.constant(rate))


def fine_tune(
    model: keras.Model,
    train: tuple[np.ndarray, np.ndarray],
    select: tuple[np.ndarray, np.ndarray],
    recipe: Recipe,
    classes: int,
    console: Console,
    on_best: Callable[[], None],
) -> History:
    """Train the model over cached features and leave it with the best averaged weights by balanced accuracy on select.

    Args:
        model: from `classifier`.
        train: features float16 (n, views, h, w, c) and labels int64 (n,).
        select: plain features float16 (n, h, w, c) and labels int64 (n,).
        on_best: called with the model holding each new best; Ctrl-C keeps that one.
    """
    history = History()
    prior = effective_prior(train[1], classes, recipe.class_balance)
    best = _Best(model, select, prior, history, on_best, classes)
    best.consider(epoch=0, extra={})
    console.print(_line(history.rows[-1]), highlight=False)
    steps_per_epoch = max(1, math.ceil(len(train[1]) / recipe.batch_size))
    total = steps_per_epoch * recipe.epochs
    if total:
        ema = [tf.Variable(v.value, trainable=False) for v in model.trainable_variables]
        step = _make_step(model, recipe, _optimiser(recipe, model), ema)
        batches = _prefetch(_batches(train, recipe, classes, total))
        try:
            with track("Fine-tuning", total * recipe.batch_size, console) as advance:
                for epoch in range(1, recipe.epochs + 1):
                    _epoch(epoch, steps_per_epoch, total, step, batches, recipe, advance, best, ema)
                    console.print(_line(history.rows[-1]), highlight=False)
        except KeyboardInterrupt:
            history.interrupted = True
            console.print(
                f"Stopped by Ctrl-C; keeping the best model so far (epoch {history.best_epoch}). "
                "Export, calibration and test follow; a second Ctrl-C ends without a bundle."
            )
        finally:
            batches.close()
    best.restore()
    better = "" if history.best_epoch else ": fine-tuning did not improve on the head over frozen features (epoch 0)"
    console.print(f"Kept epoch {history.best_epoch}{better}.", highlight=False)
    return history


def _epoch(
    epoch: int,
    steps: int,
    total: int,
    step: Callable[..., tf.Tensor],
    batches: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
    recipe: Recipe,
    advance: Callable[[int], None],
    best: _Best,
    ema: list[tf.Variable],
) -> None:
    start = time.monotonic()
    losses = []
    for index in range((epoch - 1) * steps, epoch * steps):
        features, targets, mix = next(batches)
        rate = _rate(index, total, recipe.learning_rate, recipe.warmup_share)
        losses.append(step(_tensor(features), tf.constant(targets), tf.constant(mix), tf.constant(rate)))
        advance(len(features))
    seconds = time.monotonic() - start
    extra = {
        "train_loss": float(np.mean([float(x) for x in losses])),
        "images_per_s": steps * recipe.batch_size / seconds,
        "seconds": seconds,
        "learning_rate": rate,
    }
    best.consider(epoch=epoch, extra=extra, ema=ema)


class _Best:
    """Scores the averaged weights after each epoch and remembers the best ones."""

    def __init__(
        self,
        model: keras.Model,
        select: tuple[np.ndarray, np.ndarray],
        prior: np.ndarray,
        history: History,
        on_best: Callable[[], None],
        classes: int,
    ) -> None:
        self.model, self.select, self.history, self.on_best = model, select, history, on_best
        self.log_prior = np.log(np.maximum(prior, 1e-9))
        self.classes = classes
        self.score = -1.0
        self.weights: list[np.ndarray] = []
        self.forward = tf.function(lambda x: model(tf.cast(x, tf.float32), training=False)[0], jit_compile=False)

    def consider(self, *, epoch: int, extra: dict[str, float], ema: list[tf.Variable] | None = None) -> None:
        kept = None
        if ema is not None:
            kept = [v.numpy() for v in self.model.trainable_variables]
            for variable, average in zip(self.model.trainable_variables, ema, strict=True):
                variable.assign(average.value())
        row = {"epoch": float(epoch), **self._scores(), **extra}
        self.history.rows.append(row)
        if row["select_balanced_accuracy"] > self.score:
            self.score = row["select_balanced_accuracy"]
            self.history.best_epoch = epoch
            self.weights = self.model.get_weights()
            self.on_best()
        if kept is not None:
            for variable, value in zip(self.model.trainable_variables, kept, strict=True):
                variable.assign(value)

    def _scores(self) -> dict[str, float]:
        features, labels = self.select
        parts = [
            self.forward(_tensor(np.ascontiguousarray(features[i : i + EVAL_BATCH]))).numpy()
            for i in range(0, len(labels), EVAL_BATCH)
        ]
        logits = np.concatenate(parts).astype(np.float64)
        adjusted = logits - self.log_prior
        exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability = exponent / exponent.sum(axis=1, keepdims=True)
        loss = -np.log(np.maximum(probability[np.arange(len(labels)), labels], 1e-12)).mean()
        return {
            "select_loss": float(loss),
            "select_balanced_accuracy": float(balanced_accuracy_score(labels, adjusted.argmax(axis=1))),
            "select_macro_auc": float(macro_auc_score(labels, probability)),
        }

    def restore(self) -> None:
        self.model.set_weights(self.weights)


def _optimiser(recipe: Recipe, model: keras.Model) -> keras.optimizers.Optimizer:
    optimiser = keras.optimizers.AdamW(weight_decay=recipe.weight_decay, global_clipnorm=CLIP_NORM)
    optimiser.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimiser.build(model.trainable_variables)
    return optimiser


def _make_step(
    model: keras.Model, recipe: Recipe, optimiser: keras.optimizers.Optimizer, ema: list[tf.Variable] | None
) -> Callable[..., tf.Tensor]:
    classes = model.outputs[0].shape[-1]
    smooth = recipe.label_smoothing

    def step(features: tf.Tensor, targets: tf.Tensor, mix: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        x = tf.cast(features, tf.float32)
        y = tf.cast(targets, tf.float32) * (1 - smooth) + smooth / classes
        x = _mixed(x, mix)
        y = _mixed(y, mix)
        with tf.GradientTape() as tape:
            outputs = model(x, training=True)
            logits = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(y, logits))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimiser.learning_rate.assign(rate)
        optimiser.apply(gradients, model.trainable_variables)
        if ema is not None:
            steps = tf.cast(optimiser.iterations, tf.float32)
            decay = tf.minimum(recipe.ema_decay, (1.0 + steps) / (10.0 + steps))
            for average, variable in zip(ema, model.trainable_variables, strict=True):
                average.assign(decay * average + (1 - decay) * variable.value)
        return loss

    compiled: Callable[..., tf.Tensor] = tf.function(step, jit_compile=False, reduce_retracing=True)
    return compiled


def _mixed(values: tf.Tensor, mix: tf.Tensor) -> tf.Tensor:
    """Blend each row with its mirror image in the batch: row * mix + reversed row * (1 - mix); mix is 1 for none."""
    share = tf.reshape(mix, [-1] + [1] * (len(values.shape) - 1))
    return values * share + tf.reverse(values, [0]) * (1 - share)


def _batches(
    train: tuple[np.ndarray, np.ndarray], recipe: Recipe, classes: int, total: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    features, labels = train
    order = draws(
        labels,
        classes=classes,
        class_balance=recipe.class_balance,
        view_count=features.shape[1],
        batch_size=recipe.batch_size,
        seed=recipe.seed + 1,
    )
    rng = np.random.default_rng([recipe.seed, 0x313])
    for _ in range(total):
        rows, views = next(order)
        mix = np.ones(len(rows), np.float32)
        if recipe.mixup > 0:
            drawn = rng.beta(recipe.mixup, recipe.mixup, len(rows))
            mix = np.maximum(drawn, 1 - drawn).astype(np.float32)
        yield features[rows, views], _one_hot(labels[rows], classes), mix


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


def _one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    targets: np.ndarray = np.eye(classes, dtype=np.float32)[labels]
    return targets


def _targets(labels: np.ndarray, classes: int) -> tf.Tensor:
    return tf.constant(_one_hot(labels, classes))


def _tensor(values: np.ndarray) -> tf.Tensor:
    return tf.convert_to_tensor(values)


def _rate(step: int, total: int, peak: float, warmup_share: float) -> float:
    """Linear warm-up, then a half cosine to zero (Loshchilov & Hutter 2017)."""
    warm = max(1, int(total * warmup_share))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _line(row: dict[str, float]) -> str:
    text = (
        f"epoch {row['epoch']:.0f}: select balanced accuracy {row['select_balanced_accuracy']:.3f}, "
        f"AUC {row['select_macro_auc']:.3f}, loss {row['select_loss']:.3f}"
    )
    if "train_loss" in row:
        text += f" | train loss {row['train_loss']:.3f}, {row['images_per_s']:.0f} images/s"
    return text
