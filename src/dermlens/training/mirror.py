"""One training step on several devices of this machine: `MirroredStrategy` holds a copy of the network on each.

What is trained, its optimiser and its averages stay one set. Each device gives the gradients of its share of the batch,
they are summed over the devices, and the one set moves once. So the norm that is clipped is that of the whole batch
(Keras's optimisers clip on each device and sum then), a checkpoint is the same for any number of devices, and no other
part of a training knows of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dermlens.training.device import leaves

Backward = Callable[..., tuple[tf.Tensor, list[tf.Tensor]]]
"""Network, its variables, inputs, targets, mix, share of the batch -> that share of the loss, and its gradients."""


class Mirror:
    """Copies of a model, one on each device.

    Args:
        model: functional; its weights are what is trained.
        devices: names such as "GPU:0".
        batch_size: of a whole step, at least two images for each device.
    """

    def __init__(self, model: keras.Model, devices: Sequence[str], batch_size: int) -> None:
        # Not the default way to reduce: its collective operations mix up two strategies of one process.
        self._strategy = tf.distribute.MirroredStrategy(list(devices), tf.distribute.ReductionToOneDevice())
        with self._strategy.scope():
            self._copy = keras.models.clone_model(model)
        self._rows = shares(batch_size, len(devices))
        self._batch_size = batch_size
        weights = {id(v) for v in model.weights}
        pairs = list(zip(model.variables, self._copy.variables, strict=True))
        self._weights = [pair for pair in pairs if id(pair[0]) in weights]
        self._seeds = [pair for pair in pairs if id(pair[0]) not in weights]
        self._trained = list(zip(model.trainable_variables, self._copy.trainable_variables, strict=True))
        self._statistics = list(zip(_followed(model), _followed(self._copy), strict=True))

    def take_up(self) -> None:
        """Give the copies the weights of the model, and each device dropout masks of its own."""
        with self._strategy.scope():
            for own, copy in self._weights:
                copy.assign(own.numpy())
        for own, copy in self._seeds:
            for place, part in enumerate(self._strategy.experimental_local_results(copy.value)):
                part.assign(own.numpy() + np.array([place, 0], own.numpy().dtype))

    @tf.autograph.experimental.do_not_convert
    def run(self, backward: Backward, inputs: tf.Tensor, targets: tf.Tensor, mix: tf.Tensor) -> tuple[Any, list[Any]]:
        """Return loss and gradients of a whole batch; batch-norm statistics that follow it become the devices' mean."""

        def on_device(*arrays: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            context = tf.distribute.get_replica_context()
            rows = self._rows[int(tf.get_static_value(context.replica_id_in_sync_group))]
            with tf.device("/CPU:0"):
                part = [tf.concat([array[start:stop] for start, stop in rows], 0) for array in arrays]
            share = sum(stop - start for start, stop in rows) / self._batch_size
            loss, gradients = backward(self._copy, self._copy.trainable_variables, *part, share)
            sums = context.all_reduce(tf.distribute.ReduceOp.SUM, [loss, *gradients])
            followed = [tf.convert_to_tensor(copy.value) for _, copy in self._statistics]
            return sums, context.all_reduce(tf.distribute.ReduceOp.MEAN, followed) if followed else []

        sums, means = self._strategy.run(on_device, (inputs, targets, mix))
        for (own, _), mean in zip(self._statistics, means, strict=True):
            own.assign(self._first(mean))
        return self._first(sums[0]), [self._first(value) for value in sums[1:]]

    def spread(self) -> None:
        """Give the copies what the step has changed; part of the step, as is `run`."""
        with self._strategy.scope():
            for own, copy in (*self._trained, *self._statistics):
                copy.value.assign(own.value)
        for own, copy in self._seeds:
            own.assign(self._first(copy.value))

    def _first(self, value: Any) -> tf.Tensor:
        return tf.convert_to_tensor(self._strategy.experimental_local_results(value)[0])


def shares(batch_size: int, devices: int) -> list[list[tuple[int, int]]]:
    """Return the rows of the batch for each device, as one or two ranges (start, stop).

    Row i and row batch_size - 1 - i come to one device and lie there mirrored again, since mixup blends them.
    """
    half = batch_size // 2
    cuts = [half * place // devices for place in range(devices + 1)]
    found = [[(a, b), (batch_size - b, batch_size - a)] for a, b in pairwise(cuts)]
    return [*found[:-1], [(cuts[-2], batch_size - cuts[-2])]]


def _followed(model: keras.Model) -> list[keras.Variable]:
    """Return the statistics of the batch norms that follow the batches."""
    norms = [leaf for leaf in leaves(model) if isinstance(leaf, keras.layers.BatchNormalization) and leaf.trainable]
    return [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]
