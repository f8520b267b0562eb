"""Frozen batch norm as a part of the convolution before it, for the steps of a training.

A batch norm that neither follows the batches nor is trained multiplies each channel by one number and adds another.
TensorFlow does so over the whole feature map, forward and backward. Here the number goes into the filters, which are
small, and the addition is a bias, which TensorFlow can compute together with the convolution. Weights, answers and
gradients are those of the network as it was, but for rounding. `benchmarks/training_speed.py` says what it saves.
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
