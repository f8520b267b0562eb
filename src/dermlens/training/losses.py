"""What training minimises, and the class prior that a network trained so answers at.

- cross_entropy: the default; with `class_balance` it copes with rare classes by drawing them more often.
- focal (Lin et al. 2017): turns away from what is told easily; for sets where one class drowns the others. It
  distorts probabilities more than the others do, which calibration then has to mend.
- generalised_cross_entropy (Zhang & Sabuncu 2018): bears wrong labels; for sets labelled by many hands or by machine.
- logit_adjustment (Menon et al. 2021): adds the log prior to the logits while training, so that the network itself
  answers as if all classes were equally frequent; for strong imbalance instead of drawing rare images over and over.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dermlens.training.pipeline import effective_prior
from dermlens.training.recipe import Recipe

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
