"""Optimisation: the schedule, the averaged weights, and that the best epoch is the one kept."""

from __future__ import annotations

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from dermlens.training.fit import History, _Best, _rate, classifier, fine_tune, fit_head
from dermlens.training.recipe import Recipe

RECIPE = Recipe(batch_size=16, epochs=3, head_epochs=10, dropout=0.0, learning_rate=1e-2, mixup=0.2)


def top() -> keras.Model:
    keras.utils.set_random_seed(0)
    features = keras.Input((4, 4, 6))
    x = keras.layers.Conv2D(8, 3, padding="same", name="conv")(features)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(features, keras.layers.ReLU(name="relu")(x))


def toy(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cached features of three classes that differ in one channel each, float16 (n, 2 views, 4, 4, 6)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    features = rng.normal(0, 0.5, (n, 2, 4, 4, 6))
    features[np.arange(n), :, :, :, labels] += 2
    return features.astype(np.float16), labels


def test_the_rate_warms_up_to_its_peak_and_falls_to_zero() -> None:
    rates = [_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates.index(1.0) == 9
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_training_learns_and_ends_at_the_best_epochs_weights() -> None:
    model = classifier(top(), 3, 0.0, 0)
    train, (select, labels) = toy(96, 0), toy(48, 1)
    kept: list[list[np.ndarray]] = []
    history = fine_tune(
        model,
        train,
        (select[:, 0], labels),
        RECIPE,
        3,
        Console(file=io.StringIO()),
        on_best=lambda: kept.append(model.get_weights()),
    )
    scores = [row["select_balanced_accuracy"] for row in history.rows]
    assert len(scores) == 4 and max(scores) > 0.9 > scores[0]
    assert history.best_epoch == int(np.argmax(scores))
    for last, best in zip(model.get_weights(), kept[-1], strict=True):
        np.testing.assert_array_equal(last, best)
    logits = model(select[:, 0].astype(np.float32), training=False)[0]
    assert float(np.mean(np.asarray(logits).argmax(axis=1) == labels)) == pytest.approx(max(scores), abs=0.03)


def test_the_averaged_weights_are_the_ones_scored_and_kept_and_training_goes_on_with_its_own() -> None:
    model = classifier(top(), 3, 0.0, 0)
    features, labels = toy(12, 0)
    seen: list[float] = []
    best = _Best(
        model,
        (features[:, 0], labels),
        np.full(3, 1 / 3),
        History(),
        on_best=lambda: seen.append(float(np.abs(model.get_layer("conv").get_weights()[0]).max())),
        classes=3,
    )
    live = [v.numpy() for v in model.trainable_variables]
    averages = [tf.Variable(tf.zeros_like(v.value)) for v in model.trainable_variables]
    best.consider(epoch=1, extra={}, ema=averages)
    assert seen == [0.0], "the averages stood in the model when it was scored and saved"
    for variable, before in zip(model.trainable_variables, live, strict=True):
        np.testing.assert_array_equal(variable.numpy(), before)
    best.restore()
    assert float(np.abs(model.get_layer("conv").get_weights()[0]).max()) == 0.0


def test_the_same_seed_gives_the_same_first_epoch() -> None:
    losses = []
    for _ in range(2):
        model = classifier(top(), 3, 0.0, 0)
        history = fine_tune(
            model,
            toy(48, 0),
            (toy(24, 1)[0][:, 0], toy(24, 1)[1]),
            Recipe(batch_size=16, epochs=1),
            3,
            Console(file=io.StringIO()),
            on_best=lambda: None,
        )
        losses.append(history.rows[1]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_head_alone_changes_nothing_but_the_last_layer() -> None:
    model = classifier(top(), 3, 0.0, 0)
    before = model.get_layer("conv").get_weights()[0].copy()
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    embeddings = rng.normal(0, 0.3, (60, 8)).astype(np.float32)
    embeddings[np.arange(60), labels] += 2
    fit_head(model, embeddings, labels, Recipe(batch_size=16, head_epochs=60, head_learning_rate=0.05), 3)
    np.testing.assert_array_equal(model.get_layer("conv").get_weights()[0], before)
    weights, bias = model.get_layer("logits").get_weights()
    assert np.mean((embeddings @ weights + bias).argmax(axis=1) == labels) > 0.9


def test_an_error_while_batches_are_made_ends_the_training() -> None:
    model = classifier(top(), 3, 0.0, 0)
    features, labels = toy(48, 0)
    with pytest.raises(IndexError):
        fine_tune(
            model,
            (features[:10], labels),  # a cache that is too short
            (features[:, 0], labels),
            Recipe(batch_size=48, epochs=5),
            3,
            Console(file=io.StringIO()),
            on_best=lambda: None,
        )
