"""One step of a training, compiled: loss, gradients, AdamW, averaged weights; on one device or on several.

Frozen batch norm as a part of the convolution before it, for the steps of a training.

A batch norm that neither follows the batches nor is trained multiplies each channel by one number and adds another.
TensorFlow does so over the whole feature map, forward and backward. Here the number goes into the filters, which are
small, and the addition is a bias, which TensorFlow can compute together with the convolution. Weights, answers and
gradients are those of the network as it was, but for rounding. `python -m benchmarks training` says what it saves.

One training step on several devices of this machine: `MirroredStrategy` holds a copy of the network on each.

What is trained, its optimiser and its averages stay one set. Each device gives the gradients of its share of the batch,
they are summed over the devices, and the one set moves once. So the norm that is clipped is that of the whole batch
(Keras's optimisers clip on each device and sum then), a checkpoint is the same for any number of devices, and no other
part of a training knows of them.

What training minimises, and the class prior that a network trained so answers at.

- cross_entropy: the default; with `class_balance` it copes with rare classes by drawing them more often.
- focal (Lin et al. 2017): turns away from what is told easily; for sets where one class drowns the others. It
  distorts probabilities more than the others do, which calibration then has to mend.
- generalised_cross_entropy (Zhang & Sabuncu 2018): bears wrong labels; for sets labelled by many hands or by machine.
- logit_adjustment (Menon et al. 2021): adds the log prior to the logits while training, so that the network itself
  answers as if all classes were equally frequent; for strong imbalance instead of drawing rare images over and over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dermlens.networks.backend import leaves
from dermlens.training.optimiser import average_in
from dermlens.training.recipe import Recipe
from dermlens.training.views import effective_prior


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


class FoldedConvolution(keras.layers.Layer):  # type: ignore[misc]
    """The convolution and the frozen batch norm of another model, as one; it has no weights of its own."""

    def __init__(self, convolution: keras.layers.Layer, norm: keras.layers.BatchNormalization) -> None:
        super().__init__(name=f"{convolution.name}_folded", dtype=convolution.dtype_policy)
        self._parts = (convolution, norm)

    def call(self, inputs: Any) -> Any:
        layer, norm = self._parts
        scale = norm.gamma * keras.ops.rsqrt(norm.moving_variance + norm.epsilon)  # float32 in every precision
        shift = keras.ops.cast(norm.beta - norm.moving_mean * scale, self.compute_dtype)
        by_filter = keras.ops.reshape(scale, (-1, layer.depth_multiplier)) if _is_depthwise(layer) else scale
        kernel = keras.ops.cast(layer.kernel * by_filter, self.compute_dtype)
        operation = keras.ops.depthwise_conv if _is_depthwise(layer) else keras.ops.conv
        return operation(inputs, kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate) + shift


def folded(model: keras.Model) -> keras.Model:
    """Return a model of the same weights to train in place of `model`, which it is itself where nothing can be folded.

    Its `trainable_variables` are not in the same order: take those of `model`.
    """
    norms = norms_behind(model)
    if not norms:
        return model
    inside = {id(norm) for norm in norms.values()}

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if id(layer) in norms:
            return FoldedConvolution(layer, norms[id(layer)])(*args)
        if id(layer) in inside:
            return args[0]
        return layer(*args, **kwargs)

    return keras.models.clone_model(model, clone_function=_shared, call_function=call, recursive=True)


def _shared(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return the layer itself where it has weights or draws, else a new one.

    A layer called in two models has no single `output` any more, and by that backbones are cut.
    """
    return layer if layer.variables else type(layer).from_config(layer.get_config())


def norms_behind(model: keras.Model) -> dict[int, keras.layers.BatchNormalization]:
    """Return the frozen batch norm behind each convolution that is nothing else and feeds nothing else; by `id`."""
    found = {}
    given = {id(tensor._keras_history.operation) for part in _models(model) for tensor in part.outputs}
    for norm in leaves(model):
        if not isinstance(norm, keras.layers.BatchNormalization) or norm.trainable:
            continue
        before = norm._inbound_nodes[0].parent_nodes[0].operation
        alone = all(node.operation is norm for node in before._outbound_nodes) and id(before) not in given
        if alone and _is_bare_convolution(before) and norm.scale and norm.center:
            found[id(before)] = norm
    return found


def _models(model: keras.Model) -> list[keras.Model]:
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    return [model, *(part for layer in nested for part in _models(layer))]


def _is_bare_convolution(layer: keras.layers.Layer) -> bool:
    if not isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
        return False
    linear = layer.activation is keras.activations.linear
    return linear and not layer.use_bias and layer.data_format == "channels_last"


def _is_depthwise(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.DepthwiseConv2D)


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


Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def make_loss(recipe: Recipe, prior: np.ndarray) -> Loss:
    """Return a function of soft targets and logits, both float32 (n, classes), that gives the mean loss.

    Args:
        prior: class shares in the batches, (classes,), sum 1.
    """
    shift = tf.constant(recipe.logit_adjustment * np.log(np.maximum(prior, 1e-9)), tf.float32)

    def each(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        if recipe.loss == "focal":
            return _focal(targets, logits, recipe.focal_gamma)
        if recipe.loss == "generalised_cross_entropy":
            return _generalised(targets, logits, recipe.noise_q)
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)

    return lambda targets, logits: tf.reduce_mean(each(targets, logits + shift))


def answered_prior(labels: np.ndarray, classes: int, recipe: Recipe) -> np.ndarray:
    """Return the class shares at which a network trained on `labels` answers, float64 (classes,), sum 1.

    That is the prior of the batches, taken to the power of 1 - logit_adjustment.
    """
    shares: np.ndarray = np.maximum(effective_prior(labels, classes, recipe.class_balance), 1e-9)
    shares = shares ** (1 - recipe.logit_adjustment)
    return shares / shares.sum()


def _focal(targets: tf.Tensor, logits: tf.Tensor, gamma: float) -> tf.Tensor:
    log_p = tf.nn.log_softmax(logits)
    missing = tf.maximum(1 - tf.exp(log_p), 1e-6)  # 0 to a power below 1 has an infinite slope
    return -tf.reduce_sum(targets * missing**gamma * log_p, axis=1)


def _generalised(targets: tf.Tensor, logits: tf.Tensor, q: float) -> tf.Tensor:
    """(1 - p^q) / q for each class, weighted by the target; q -> 0 is cross-entropy, q = 1 the mean absolute error."""
    p = tf.maximum(tf.nn.softmax(logits), 1e-7)
    return tf.reduce_sum(targets * (1 - p**q) / q, axis=1)
