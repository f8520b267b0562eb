"""One step: frozen batch norm inside the convolutions is the same network, and the losses are what they say."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import dermlens.training.step as step_module
from dermlens.networks.backend import leaves
from dermlens.networks.efficientnet import backbone
from dermlens.training.device import resolve
from dermlens.training.network import Network, add_head, open_backbone
from dermlens.training.optimiser import make_averages, make_optimiser
from dermlens.training.recipe import Recipe
from dermlens.training.step import FoldedConvolution, answer_prior, fold_batch_norm, make_loss, make_step


def network(name: str = "lite0", **settings: object) -> Network:
    chosen: dict[str, object] = {"size_px": 32, "weights": "none", "fine_tune": "full", "batch_norm": "frozen"}
    recipe = resolve(Recipe(backbone=name, **{**chosen, **settings}), backbone(name))  # type: ignore[arg-type]
    made = add_head(open_backbone(recipe), recipe, 3)
    rng = np.random.default_rng(0)
    for norm in norms(made.whole):  # as after a training, not the zeros and ones of a new network
        norm.gamma.assign(rng.normal(1, 0.2, norm.gamma.shape))
        norm.beta.assign(rng.normal(0, 0.2, norm.beta.shape))
        norm.moving_mean.assign(rng.normal(0, 0.2, norm.moving_mean.shape))
        norm.moving_variance.assign(rng.uniform(0.5, 2, norm.moving_variance.shape))
    return made


def norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in leaves(model) if isinstance(layer, keras.layers.BatchNormalization)]


def logits_and_gradients(
    model: keras.Model, inputs: np.ndarray, variables: list[keras.Variable]
) -> tuple[np.ndarray, list[np.ndarray]]:
    with tf.GradientTape() as tape:
        logits = model(inputs, training=False)[0]
        loss = tf.reduce_sum(logits**2)
    return logits.numpy(), [gradient.numpy() for gradient in tape.gradient(loss, variables)]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("lite0", "whole"),
        ("lite0", "classifier"),
        pytest.param("b0", "whole", marks=pytest.mark.long),
        ("v2-b0", "whole"),
    ],
)
def test_answers_and_gradients_are_those_of_the_network(name: str, part: str) -> None:
    model = getattr(network(name), part)
    other = fold_batch_norm(model)
    assert sum(isinstance(layer, FoldedConvolution) for layer in leaves(other)) == len(norms(model)) > 0
    assert not norms(other)
    inputs = np.random.default_rng(1).uniform(0, 6, (3, *model.inputs[0].shape[1:])).astype(np.float32)
    logits, gradients = logits_and_gradients(model, inputs, model.trainable_variables)
    same_logits, same_gradients = logits_and_gradients(other, inputs, model.trainable_variables)
    np.testing.assert_allclose(same_logits, logits, atol=1e-4 * np.abs(logits).max())
    for variable, one, two in zip(model.trainable_variables, gradients, same_gradients, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-4 * np.abs(one).max() + 1e-12, err_msg=variable.path)


def test_the_weights_are_shared_and_the_network_is_left_as_it_was() -> None:
    made = network()
    names = [variable.path for variable in made.whole.variables]
    other = fold_batch_norm(made.whole)
    assert {id(v) for v in other.trainable_variables} == {id(v) for v in made.whole.trainable_variables}
    assert [variable.path for variable in made.whole.variables] == names
    assert len(norms(made.whole)) == 49
    inputs = np.zeros((1, 32, 32, 3), np.float32)
    before = other(inputs, training=False)[0].numpy()
    made.whole.get_layer("classifier").get_layer("logits").bias.assign_add([1.0, 2.0, 3.0])
    np.testing.assert_allclose(other(inputs, training=False)[0].numpy() - before, [[1.0, 2.0, 3.0]], atol=1e-5)


def test_dropout_draws_what_it_would_have_drawn() -> None:
    model, again = (network(dropout=0.5, fine_tune="top", cut_block=12).classifier for _ in range(2))
    for mine, theirs in zip(model.variables, again.variables, strict=True):
        theirs.assign(mine.numpy())
    inputs = np.random.default_rng(1).uniform(0, 6, (4, *model.inputs[0].shape[1:])).astype(np.float32)
    other = fold_batch_norm(again)
    for _ in range(2):
        wanted = model(inputs, training=True)[0].numpy()
        np.testing.assert_allclose(other(inputs, training=True)[0].numpy(), wanted, rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(model.variables, again.variables, strict=True):  # the states of the draws, too
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy(), err_msg=mine.path)
    assert any("seed" in variable.path for variable in model.variables)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_step_moves_the_weights_as_it_did(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for fold in (fold_batch_norm, lambda model: model):
        monkeypatch.setattr(step_module, "fold_batch_norm", fold)
        keras.utils.set_random_seed(0)
        recipe = Recipe(batch_size=4, precision=precision, weights="none", fine_tune="full", dropout=0.0, mixup=0.0)
        model = network(precision=precision, dropout=0.0, fine_tune="top", cut_block=14).classifier
        inputs = np.random.default_rng(1).uniform(0, 6, (4, *model.inputs[0].shape[1:])).astype(np.float32)
        optimiser, labels = make_optimiser(model, recipe), np.array([0, 1, 2, 0])
        step = make_step(model, recipe, optimiser, make_averages(model), labels, 3)
        mix, targets = np.ones(4, np.float32), np.eye(3, dtype=np.float32)[labels]
        before = [variable.numpy() for variable in model.trainable_variables]
        losses = [float(step(inputs, targets, mix, np.float32(1e-3))) for _ in range(3)]
        after = [variable.numpy() for variable in model.trainable_variables]
        assert all(not np.array_equal(one, two) for one, two in zip(before, after, strict=True))
        moved.append((losses, after))
    assert moved[0][0] == pytest.approx(moved[1][0], rel=1e-4 if precision == "float32" else 0.05)


def test_batch_norm_that_follows_the_batches_stays_a_layer() -> None:
    made = network(batch_norm="updated")
    assert fold_batch_norm(made.whole) is made.whole
    assert fold_batch_norm(made.head) is made.head


def test_a_convolution_that_feeds_something_else_too_stays_as_it_is() -> None:
    image = keras.Input((8, 8, 3))
    wide = keras.layers.Conv2D(4, 3, use_bias=False)(image)
    norm = keras.layers.BatchNormalization()
    norm.trainable = False
    model = keras.Model(image, keras.layers.Add()([norm(wide), wide]))
    assert fold_batch_norm(model) is model
    model = keras.Model(image, [norm(wide), wide])
    assert fold_batch_norm(model) is model


def test_a_depthwise_convolution_may_widen_and_dilate() -> None:
    image = keras.Input((8, 8, 3))
    layer = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, dilation_rate=2, padding="same", use_bias=False)
    norm = keras.layers.BatchNormalization()
    norm.trainable = False
    model = keras.Model(image, norm(layer(image)))
    norm.gamma.assign(np.arange(1.0, 7.0))
    inputs = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    other = fold_batch_norm(model)
    assert not norms(other)
    np.testing.assert_allclose(other(inputs), model(inputs), atol=1e-4)


def test_what_an_activation_parts_stays_parted() -> None:
    image = keras.Input((8, 8, 3))
    norm = keras.layers.BatchNormalization()
    norm.trainable = False
    model = keras.Model(image, norm(keras.layers.Conv2D(4, 3, use_bias=False, activation="relu")(image)))
    assert fold_batch_norm(model) is model


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
