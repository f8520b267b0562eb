"""Parameters and multiply-adds of a built network, counted on its layers."""

from __future__ import annotations

import keras
import numpy as np

from dermlens.training.device import leaves


def multiply_adds(model: keras.Model) -> int:
    """Return the multiply-adds of one image through all convolutions and dense layers, squeeze-and-excitation included.

    Additions, activations and batch normalisation (which an export folds into the convolutions) are not counted, as
    in the EfficientNet papers.
    """
    return sum(_of_layer(layer) for layer in leaves(model))


def _of_layer(layer: keras.layers.Layer) -> int:
    if isinstance(layer, keras.layers.Dense):
        return int(np.prod(layer.kernel.shape))
    if not isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
        return 0
    _, height, width, _ = layer.output.shape
    return int(height * width * np.prod(layer.kernel.shape))


def parameters(model: keras.Model) -> int:
    """Return the number of weights, batch-norm statistics included."""
    return int(model.count_params())
