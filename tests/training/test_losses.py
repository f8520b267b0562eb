"""Losses against their definitions, and the prior at which a network trained by each answers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from dermlens.training.recipe import Recipe
from dermlens.training.step import answer_prior, make_loss

EVEN = np.array([0.5, 0.5])
TARGETS = tf.constant([[1.0, 0.0], [0.0, 1.0]])
LOGITS = tf.constant([[2.0, 0.0], [1.0, 0.0]])
P = 1 / (1 + np.exp([-2.0, 1.0]))  # of the true class


def value(recipe: Recipe, prior: np.ndarray = EVEN) -> float:
    return float(make_loss(recipe, prior)(TARGETS, LOGITS))


def test_cross_entropy() -> None:
    assert value(Recipe()) == pytest.approx(-np.log(P).mean(), rel=1e-5)


def test_focal_turns_away_from_what_is_told_easily() -> None:
    assert value(Recipe(loss="focal", focal_gamma=0.0)) == pytest.approx(value(Recipe()), rel=1e-5)
    found = value(Recipe(loss="focal", focal_gamma=2.0))
    assert found == pytest.approx((-((1 - P) ** 2) * np.log(P)).mean(), rel=1e-5)


def test_generalised_cross_entropy_lies_between_cross_entropy_and_the_absolute_error() -> None:
    assert value(Recipe(loss="generalised_cross_entropy", noise_q=0.01)) == pytest.approx(value(Recipe()), rel=0.02)
    assert value(Recipe(loss="generalised_cross_entropy", noise_q=1.0)) == pytest.approx((1 - P).mean(), rel=1e-5)


def test_a_wrong_label_weighs_less_under_generalised_cross_entropy() -> None:
    def slope(recipe: Recipe) -> float:
        logits = tf.Variable([[6.0, 0.0]])
        with tf.GradientTape() as tape:
            loss = make_loss(recipe, EVEN)(tf.constant([[0.0, 1.0]]), logits)
        return float(tf.norm(tape.gradient(loss, logits)))

    assert slope(Recipe(loss="generalised_cross_entropy", noise_q=0.7)) < 0.1 * slope(Recipe())


def test_logit_adjustment_shifts_by_the_log_prior() -> None:
    prior = np.array([0.9, 0.1])
    shifted = LOGITS.numpy() + np.log(prior)
    p = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    expected = -np.log([p[0, 0], p[1, 1]]).mean()
    assert value(Recipe(logit_adjustment=1.0), prior) == pytest.approx(expected, rel=1e-5)


def test_the_prior_of_the_answers() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    np.testing.assert_allclose(answer_prior(labels, 2, Recipe(class_balance=0.0)), [0.9, 0.1])
    np.testing.assert_allclose(answer_prior(labels, 2, Recipe(class_balance=1.0)), [0.5, 0.5])
    full = Recipe(class_balance=0.0, logit_adjustment=1.0)
    np.testing.assert_allclose(answer_prior(labels, 2, full), [0.5, 0.5])
    half = Recipe(class_balance=0.0, logit_adjustment=0.5)
    np.testing.assert_allclose(answer_prior(labels, 2, half), [0.75, 0.25])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_slope_of_the_focal_loss_is_finite_where_the_network_is_sure(gamma: float) -> None:
    logits = tf.Variable([[30.0, 0.0], [0.0, 30.0]])
    with tf.GradientTape() as tape:
        loss = make_loss(Recipe(loss="focal", focal_gamma=gamma), EVEN)(tf.constant([[1.0, 0.0]] * 2), logits)
    assert np.isfinite(tape.gradient(loss, logits).numpy()).all()
