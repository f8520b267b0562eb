"""AdamW with a rate for each layer, its schedule, and the averaged weights.

Lower blocks hold general features and may learn more slowly than upper ones (Howard & Ruder 2018, discriminative
rates): a block `k` places below the head learns at `layer_decay ** k` times the rate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import keras
import tensorflow as tf
from keras import ops

from dermlens.training.recipe import Recipe

_BLOCK = re.compile(r"block(\d+)([a-z]+)_")


class LayerwiseAdamW(keras.optimizers.AdamW):  # type: ignore[misc]
    """AdamW whose rate and weight decay are scaled for each variable; `scales` are in the order of the variables."""

    def __init__(self, *, scales: Sequence[float], weight_decay: float, clip_norm: float) -> None:
        super().__init__(weight_decay=weight_decay, global_clipnorm=clip_norm or None)
        self.scales = tuple(scales)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        super().update_step(gradient, variable, learning_rate * self.scales[self._get_variable_index(variable)])

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        for variable in variables:
            if self._use_weight_decay(variable):
                scale = self.weight_decay * self.scales[self._get_variable_index(variable)]
                variable.assign(variable - variable * scale * ops.cast(self.learning_rate, variable.dtype))


def make_optimiser(model: keras.Model, recipe: Recipe) -> keras.optimizers.Optimizer:
    """Return the optimiser of a model's trainable variables, built; wrapped in loss scaling for half precision."""
    variables = model.trainable_variables
    optimiser = LayerwiseAdamW(
        scales=rate_scales([v.path for v in variables], recipe.layer_decay),
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
    )
    optimiser.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    if recipe.precision == "mixed_float16":
        optimiser = keras.optimizers.LossScaleOptimizer(optimiser)
    optimiser.build(variables)
    return optimiser


def rate_scales(paths: Sequence[str], layer_decay: float) -> list[float]:
    """Return the share of the rate for each variable path such as `.../block4b_expand_conv/kernel`.

    Head and top convolution learn at the full rate, the block below them at `layer_decay`, the next at its square,
    and the stem slowest.
    """
    matches = [_BLOCK.search(path) for path in paths]
    blocks = sorted({(int(m[1]), len(m[2]), m[2]) for m in matches if m}, reverse=True)
    depth = {block: place for place, block in enumerate(blocks, start=1)}
    scales = []
    for path, match in zip(paths, matches, strict=True):
        if match:
            scales.append(layer_decay ** depth[int(match[1]), len(match[2]), match[2]])
        else:
            scales.append(layer_decay ** (len(blocks) + 1) if "stem" in path else 1.0)
    return scales


def rate_at(step: int, total: int, peak: float, warmup_share: float) -> float:
    """Return the rate of a step: linear warm-up, then a half cosine to zero (Loshchilov & Hutter 2017)."""
    warm = max(1, int(total * warmup_share))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def make_averages(model: keras.Model) -> list[tf.Variable]:
    """Return copies of all weights, batch-norm statistics included, to be averaged over the steps."""
    return [tf.Variable(v.value, trainable=False, dtype=v.value.dtype) for v in model.weights]


def update_averages(averages: Sequence[tf.Variable], model: keras.Model, step: tf.Tensor, decay: float) -> None:
    """Move the averages towards the weights; the first steps count more, so that the start is soon forgotten."""
    steps = tf.cast(step, tf.float32)
    keep = tf.minimum(decay, (1.0 + steps) / (10.0 + steps))
    for average, variable in zip(averages, model.weights, strict=True):
        if average.dtype.is_floating:
            average.assign_add((1 - keep) * (tf.cast(variable.value, average.dtype) - average))  # frozen: exactly 0
