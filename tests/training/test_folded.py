"""Frozen batch norm inside the convolutions: the same network to a training, in fewer passes over the feature maps."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from dermlens.training.backbones import backbone
from dermlens.training.device import leaves, resolve
from dermlens.training.folded import FoldedConvolution, folded
from dermlens.training.network import Network, open_backbone, with_head
from dermlens.training.recipe import Recipe


def network(name: str = "lite0", **settings: object) -> Network:
    chosen: dict[str, object] = {"size_px": 32, "weights": "none", "fine_tune": "full", "batch_norm": "frozen"}
    recipe = resolve(Recipe(backbone=name, **{**chosen, **settings}), backbone(name))  # type: ignore[arg-type]
    made = with_head(open_backbone(recipe), recipe, 3)
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


@pytest.mark.parametrize(("name", "part"), [("lite0", "whole"), ("lite0", "classifier"), ("b0", "whole")])
def test_answers_and_gradients_are_those_of_the_network(name: str, part: str) -> None:
    model = getattr(network(name), part)
    other = folded(model)
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
    other = folded(made.whole)
    assert {id(v) for v in other.trainable_variables} == {id(v) for v in made.whole.trainable_variables}
    assert [variable.path for variable in made.whole.variables] == names
    assert len(norms(made.whole)) == 49
    inputs = np.zeros((1, 32, 32, 3), np.float32)
    before = other(inputs, training=False)[0].numpy()
    made.whole.get_layer("classifier").get_layer("logits").bias.assign_add([1.0, 2.0, 3.0])
    np.testing.assert_allclose(other(inputs, training=False)[0].numpy() - before, [[1.0, 2.0, 3.0]], atol=1e-5)


def test_dropout_draws_what_it_would_have_drawn() -> None:
    made, again = network(dropout=0.5), network(dropout=0.5)
    for mine, theirs in zip(made.whole.variables, again.whole.variables, strict=True):
        theirs.assign(mine.numpy())
    inputs = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    wanted = made.whole(inputs, training=True)[0].numpy()
    np.testing.assert_allclose(folded(again.whole)(inputs, training=True)[0].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_batch_norm_that_follows_the_batches_stays_a_layer() -> None:
    made = network(batch_norm="updated")
    assert folded(made.whole) is made.whole
    assert folded(made.head) is made.head


def test_a_convolution_that_feeds_something_else_too_stays_as_it_is() -> None:
    image = keras.Input((8, 8, 3))
    wide = keras.layers.Conv2D(4, 3, use_bias=False)(image)
    norm = keras.layers.BatchNormalization()
    norm.trainable = False
    model = keras.Model(image, keras.layers.Add()([norm(wide), wide]))
    assert folded(model) is model
