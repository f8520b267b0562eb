"""The linear probe: logistic regression on the frozen ImageNet features of the same images.

It is the baseline that a fine-tuned network has to beat, so every training fits it on the same split and stores its
score beside the model's (Kornblith et al. 2019, "Do better ImageNet models transfer better?").
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class Probe:
    """A fitted probe, with its strength (inverse regularisation C) chosen on select, and whether the fit converged.

    Attributes:
        mean, scale: of the embeddings, (d,); weights (d, k) and bias (k,) for the k classes in `present`.
        classes: number of all classes.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    present: np.ndarray
    strength: float
    classes: int
    converged: bool

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Return float64 (n, classes) for embeddings float32 (n, d)."""
        logits = (embeddings - self.mean) / self.scale @ self.weights + self.bias
        exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
        result = np.zeros((len(embeddings), self.classes))
        result[:, self.present] = exponent / exponent.sum(axis=1, keepdims=True)
        return result

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return plain values and arrays by field, to be saved."""
        values = vars(self)
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        return {name: value for name, value in values.items() if name not in arrays}, arrays


def fit_probe(
    train: tuple[np.ndarray, np.ndarray],
    select: tuple[np.ndarray, np.ndarray],
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:
    """Fit the probe on (embeddings, labels) of train and choose its regularisation by balanced accuracy on select.

    Strengths are tried from the weakest up, each from the fit before; among equals the simplest wins.
    """
    scaler = StandardScaler().fit(train[0])
    x_train, x_select = scaler.transform(train[0]), scaler.transform(select[0])
    classifier = LogisticRegression(class_weight="balanced", max_iter=MAX_ITERATIONS, warm_start=True)
    probes: list[tuple[float, Probe]] = []
    for strength in strengths:
        classifier.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # recorded below instead
            classifier.fit(x_train, train[1])
        score = float(balanced_accuracy_score(select[1], classifier.predict(x_select)))
        converged = bool(np.max(classifier.n_iter_) < MAX_ITERATIONS)
        probes.append((score, _probe(scaler, classifier, strength, classes, converged)))
    return max(probes, key=lambda scored: scored[0])[1]


def _probe(
    scaler: StandardScaler, classifier: LogisticRegression, strength: float, classes: int, converged: bool
) -> Probe:
    weights, bias = classifier.coef_.T.copy(), classifier.intercept_.copy()
    if len(classifier.classes_) == 2:  # scikit-learn keeps the second class only
        weights, bias = np.hstack([np.zeros_like(weights), weights]), np.array([0.0, bias[0]])
    return Probe(scaler.mean_, scaler.scale_, weights, bias, classifier.classes_.copy(), strength, classes, converged)
