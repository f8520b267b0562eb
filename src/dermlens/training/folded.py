"""Frozen batch norm as a part of the convolution before it, for the steps of a training.

A batch norm that neither follows the batches nor is trained multiplies each channel by one number and adds another.
TensorFlow does so over the whole feature map, forward and backward. Here the number goes into the filters, which are
small, and the addition is a bias, which TensorFlow computes together with the convolution and the activation. Weights,
answers and gradients are those of the network as it was, but for rounding.
"""

from __future__ import annotations

from typing import Any

import keras

from dermlens.training.device import leaves


class FoldedConvolution(keras.layers.Layer):  # type: ignore[misc]
    """The convolution and the frozen batch norm of another model, as one; it has no weights of its own."""

    def __init__(self, convolution: keras.layers.Layer, norm: keras.layers.BatchNormalization) -> None:
        super().__init__(name=f"{convolution.name}_folded", dtype=convolution.dtype_policy)
        self._parts = (convolution, norm)

    def call(self, inputs: Any) -> Any:
        layer, norm = self._parts
        scale = norm.gamma * keras.ops.rsqrt(norm.moving_variance + norm.epsilon)
        shift = norm.beta - norm.moving_mean * scale
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        operation = keras.ops.depthwise_conv if depthwise else keras.ops.conv
        kernel = layer.kernel * (scale[:, None] if depthwise else scale)
        return keras.ops.add(operation(inputs, kernel, strides=layer.strides, padding=layer.padding), shift)


def folded(model: keras.Model) -> keras.Model:
    """Return a model of the same weights to train in place of `model`, which it is itself where nothing can be folded.

    Its `trainable_variables` are not in the same order: take those of `model`.
    """
    pairs = _pairs(model)
    if not pairs:
        return model
    norms = {id(norm) for norm in pairs.values()}

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        return layer if layer.variables or id(layer) in pairs else type(layer).from_config(layer.get_config())

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if id(layer) in pairs:
            return FoldedConvolution(layer, pairs[id(layer)])(*args)
        if id(layer) in norms:
            return args[0]
        return layer(*args, **kwargs)

    return keras.models.clone_model(model, clone_function=clone, call_function=call, recursive=True)


def _pairs(model: keras.Model) -> dict[int, keras.layers.BatchNormalization]:
    """Return the frozen batch norm behind each convolution that has no bias and feeds nothing else; by `id`."""
    found = {}
    for norm in leaves(model):
        if not isinstance(norm, keras.layers.BatchNormalization) or norm.trainable:
            continue
        before = norm._inbound_nodes[0].parent_nodes[0].operation
        plain = isinstance(before, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)) and not before.use_bias
        if plain and all(node.operation is norm for node in before._outbound_nodes):
            found[id(before)] = norm
    return found
