"""The EfficientNet-Lite architecture in Keras layers, with Keras's own EfficientNet layer names.

Lite is EfficientNet without squeeze-and-excitation and with ReLU6, so that it runs well on small processors.
Stem, head and the repeats of the first and last stage are not scaled (Lite0 to Lite4 differ by width and depth only).
Source: the TensorFlow TPU repository, models/official/efficientnet/lite; Tan and Le 2019, arXiv 1905.11946.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from dermlens.training.family import HEAD_FILTERS, STEM_FILTERS, Stage

BATCH_NORM_EPSILON = 1e-3
BATCH_NORM_MOMENTUM = 0.99


def build_lite(stages: tuple[Stage, ...], *, size_px: int, name: str, drop_connect: float) -> keras.Model:
    """Build an EfficientNet-Lite with random weights.

    Args:
        stages: of a Lite row in `family.py`.
        size_px: side of the square input, pixels.
        name: name of the model.
        drop_connect: stochastic-depth rate of the last block, 0 to below 1; it grows linearly from 0.

    Returns:
        Model from float32 (n, size_px, size_px, 3) RGB 0..255 to the feature map float32 (n, h, w, 1280), with
        h = w = ceil(size_px / 32). The scaling `(x - 127) / 128` is the first layer.
    """
    inputs = keras.Input((size_px, size_px, 3), name="image")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(inputs)
    x = _conv_bn(x, STEM_FILTERS, 3, 2, "stem_conv", "stem_bn")
    x = layers.ReLU(6.0, name="stem_activation")(x)
    total = sum(stage.repeats for stage in stages)
    done = 0
    for number, stage in enumerate(stages, start=1):
        for repeat in range(stage.repeats):
            x = _mbconv(
                x,
                stage,
                block=f"block{number}{chr(ord('a') + repeat)}",
                stride=stage.stride if repeat == 0 else 1,
                drop_rate=drop_connect * done / total,
            )
            done += 1
    x = _conv_bn(x, HEAD_FILTERS, 1, 1, "top_conv", "top_bn")
    x = layers.ReLU(6.0, name="top_activation")(x)
    return keras.Model(inputs, x, name=name)


def _mbconv(x: Any, stage: Stage, *, block: str, stride: int, drop_rate: float) -> Any:
    """One inverted-bottleneck block: widen 1x1, depthwise, project 1x1, add the input where the shapes allow."""
    inputs = x
    filters_in = int(x.shape[-1])
    if stage.expand != 1:
        x = _conv_bn(x, filters_in * stage.expand, 1, 1, f"{block}_expand_conv", f"{block}_expand_bn")
        x = layers.ReLU(6.0, name=f"{block}_expand_activation")(x)
    x = layers.DepthwiseConv2D(stage.kernel, strides=stride, padding="same", use_bias=False, name=f"{block}_dwconv")(x)
    x = _batch_norm(x, f"{block}_bn")
    x = layers.ReLU(6.0, name=f"{block}_activation")(x)
    x = _conv_bn(x, stage.filters, 1, 1, f"{block}_project_conv", f"{block}_project_bn")
    if stride == 1 and filters_in == stage.filters:
        if drop_rate > 0:
            x = layers.Dropout(drop_rate, noise_shape=(None, 1, 1, 1), name=f"{block}_drop")(x)
        x = layers.Add(name=f"{block}_add")([x, inputs])
    return x


def _conv_bn(x: Any, filters: int, kernel: int, stride: int, conv: str, norm: str) -> Any:
    x = layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal"),
        name=conv,
    )(x)
    return _batch_norm(x, norm)


def _batch_norm(x: Any, name: str) -> Any:
    return layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, momentum=BATCH_NORM_MOMENTUM, name=name)(x)
