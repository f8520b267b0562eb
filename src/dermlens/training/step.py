"""One step of a training, compiled: loss, gradients, AdamW, averaged weights; on one device or on several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dermlens.training.folded import folded
from dermlens.training.losses import make_loss
from dermlens.training.mirror import Mirror
from dermlens.training.optimiser import average_in
from dermlens.training.pipeline import effective_prior
from dermlens.training.recipe import Recipe


def make_step(
    model: keras.Model,
    recipe: Recipe,
    optimiser: keras.optimizers.Optimizer,
    ema: list[tf.Variable],
    labels: np.ndarray,
    classes: int,
    mirror: Mirror | None = None,
) -> Callable[..., tf.Tensor]:
    """Return inputs, targets, mix, rate -> mean loss of the batch; a call moves the weights and their averages."""
    loss_of = make_loss(recipe, effective_prior(labels, classes, recipe.class_balance))
    smooth = recipe.label_smoothing
    trained = folded(model) if mirror is None else model

    def backward(
        network: keras.Model,
        variables: list[keras.Variable],
        inputs: tf.Tensor,
        targets: tf.Tensor,
        mix: tf.Tensor,
        share: float = 1.0,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        x = _mixed(tf.cast(inputs, tf.float32), mix)
        y = _mixed(targets * (1 - smooth) + smooth / classes, mix)
        with tf.GradientTape() as tape:
            loss = loss_of(y, tf.cast(logits_of(network(x, training=True)), tf.float32)) * share
            scaled = optimiser.scale_loss(loss)
        return loss, tape.gradient(scaled, variables)

    def step(inputs: tf.Tensor, targets: tf.Tensor, mix: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        if mirror is None:
            loss, gradients = backward(trained, model.trainable_variables, inputs, targets, mix)
        else:
            loss, gradients = mirror.run(backward, inputs, targets, mix)
        optimiser.learning_rate.assign(rate)
        optimiser.apply(gradients, model.trainable_variables)
        average_in(ema, model, optimiser.iterations, recipe.ema_decay)
        if mirror is not None:
            mirror.spread()
        return loss

    compiled: Callable[..., tf.Tensor] = tf.function(step, jit_compile=False, reduce_retracing=True)
    return compiled


def logits_of(outputs: Any) -> tf.Tensor:
    """Return the logits, the first of a model's outputs."""
    return outputs[0] if isinstance(outputs, (list, tuple)) else outputs


def _mixed(values: tf.Tensor, mix: tf.Tensor) -> tf.Tensor:
    """Blend each row with its mirror image in the batch: row * mix + reversed row * (1 - mix); mix is 1 for none."""
    share = tf.reshape(mix, [-1] + [1] * (len(values.shape) - 1))
    return values * share + tf.reverse(values, [0]) * (1 - share)
