"""Why the whole network trains so slowly on a processor: what each part of a depthwise convolution costs TensorFlow.

    python benchmarks/depthwise.py [--batch 32] [--repeats 8]

The depthwise shapes of EfficientNet-Lite0 at 224 px, one call each of: forward, gradient to the input, gradient to the
filter; the 1x1 convolution that narrows the same map; and two other ways that were tried: the gradient to the input as
a convolution with the turned filter, the gradient to the filter as one reduction for each place of the filter.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from measure import in_turn, save, spread

SHAPES = ((112, 96, 3, 2), (56, 144, 3, 1), (56, 144, 5, 2), (28, 240, 5, 1), (28, 240, 3, 2), (14, 480, 3, 1),
          (14, 672, 5, 1), (14, 672, 5, 2), (7, 1152, 5, 1))  # fmt: skip


def parts(batch: int, side: int, channels: int, kernel: int, stride: int) -> dict[str, Any]:
    import tensorflow as tf

    strides, out = [1, stride, stride, 1], -(-side // stride)
    x = tf.random.normal((batch, side, side, channels))
    w = tf.random.normal((kernel, kernel, channels, 1))
    dy = tf.random.normal((batch, out, out, channels))
    narrow = tf.random.normal((1, 1, channels, max(8, channels // 6)))
    total = max((out - 1) * stride + kernel - side, 0)
    pads = [total // 2, total - total // 2]

    def by_reduction() -> tf.Tensor:
        padded = tf.pad(x, [[0, 0], pads, pads, [0, 0]])
        span = (out - 1) * stride + 1
        places = [
            tf.reduce_sum(padded[:, i : i + span : stride, j : j + span : stride] * dy, [0, 1, 2])
            for i in range(kernel)
            for j in range(kernel)
        ]
        return tf.reshape(tf.stack(places), (kernel, kernel, -1, 1))

    raw = tf.raw_ops
    shapes = {"strides": strides, "padding": "SAME"}
    calls = {
        "forward": lambda: tf.nn.depthwise_conv2d(x, w, strides, "SAME"),
        "gradient to input": lambda: raw.DepthwiseConv2dNativeBackpropInput(
            input_sizes=tf.shape(x), filter=w, out_backprop=dy, **shapes
        ),
        "gradient to filter": lambda: raw.DepthwiseConv2dNativeBackpropFilter(
            input=x, filter_sizes=tf.shape(w), out_backprop=dy, **shapes
        ),
        "1x1 forward": lambda: tf.nn.conv2d(dy, narrow, 1, "SAME"),
        "gradient to filter by reduction": by_reduction,
    }
    if stride == 1:
        calls["gradient to input by turned filter"] = lambda: tf.nn.depthwise_conv2d(dy, w[::-1, ::-1], strides, "SAME")
    return {name: tf.function(call) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    table, native = {}, {"forward": 0.0, "gradient to input": 0.0, "gradient to filter": 0.0}
    for side, channels, kernel, stride in SHAPES:
        took = in_turn(parts(options.batch, side, channels, kernel, stride), repeats=options.repeats)
        row = {name: spread(values)["median"] for name, values in took.items()}
        table[f"{side} px, {channels} channels, {kernel}x{kernel}, stride {stride}"] = row
        for name in native:
            native[name] += row[name]
    share = native["gradient to filter"] / float(np.sum(list(native.values())))
    save("depthwise", {}, {"ms": table, "sum, ms": native, "share of the gradient to the filter": share})


if __name__ == "__main__":
    main()
