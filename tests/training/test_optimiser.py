"""Rates: their course over the steps, and their share for each block."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from dermlens.training.optimiser import make_averages, make_optimiser, rate_at, rate_scales, update_averages
from dermlens.training.recipe import Recipe


def test_the_rate_warms_up_to_its_peak_and_falls_to_zero() -> None:
    rates = [rate_at(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates.index(1.0) == 9
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_lower_blocks_learn_at_a_smaller_share() -> None:
    paths = [
        "logits/kernel",
        "top_conv/kernel",
        "block6b_bn/gamma",
        "block6a_bn/gamma",
        "block2a_bn/gamma",
        "stem_conv/kernel",
    ]
    assert rate_scales(paths, 0.5) == [1.0, 1.0, 0.5, 0.25, 0.125, 0.0625]
    assert rate_scales(paths, 1.0) == [1.0] * 6


def test_blocks_beyond_z_stand_in_order() -> None:
    assert rate_scales(["block6z_bn/g", "block6aa_bn/g"], 0.5) == [0.25, 0.5]


def tiny() -> keras.Model:
    inputs = keras.Input((2,))
    low = keras.layers.Dense(2, use_bias=False, kernel_initializer="ones", name="block1a_dense")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="ones", name="logits")(low))


def moved(recipe: Recipe) -> list[float]:
    """How far one step moves each variable, at most: AdamW's first step moves by the rate."""
    model = tiny()
    before = [v.numpy() for v in model.trainable_variables]
    optimiser = make_optimiser(model, recipe)
    optimiser.learning_rate.assign(0.1)
    optimiser.apply([tf.ones_like(v.value) for v in model.trainable_variables], model.trainable_variables)
    return [float(np.abs(v.numpy() - b).max()) for v, b in zip(model.trainable_variables, before, strict=True)]


def test_each_variable_moves_by_its_own_rate() -> None:
    steps = moved(Recipe(layer_decay=0.5, weight_decay=0.0, clip_norm=0.0))
    assert steps == pytest.approx([0.05, 0.1, 0.1], rel=1e-3)


def test_weight_decay_follows_the_rate_and_spares_biases() -> None:
    plain = moved(Recipe(layer_decay=0.5, weight_decay=0.0))
    decayed = moved(Recipe(layer_decay=0.5, weight_decay=0.5))
    more = [b - a for a, b in zip(plain, decayed, strict=True)]
    assert more == pytest.approx([0.5 * 0.05, 0.5 * 0.1, 0.0], abs=1e-4)


def test_averages_forget_the_start_first_and_then_follow_slowly() -> None:
    model = tiny()
    averages = make_averages(model)
    model.weights[0].assign(np.full((2, 2), 2.0))
    update_averages(averages, model, tf.constant(0), 0.995)
    assert float(averages[0][0, 0]) == pytest.approx(1.9)
    update_averages(averages, model, tf.constant(10**6), 0.995)
    assert float(averages[0][0, 0]) == pytest.approx(1.9 + 0.005 * 0.1)
