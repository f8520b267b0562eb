"""The linear probe: logistic regression on the frozen ImageNet features of the same images.

It is the baseline that a fine-tuned network has to beat, so every training fits it on the same split and stores its
score beside the model's (Kornblith et al. 2019, "Do better ImageNet models transfer better?").

Embeddings of the frozen network and the linear probe over them, computed once in a run and kept.
"""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from dermlens.training.material import Material
from dermlens.training.split import ROLES

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


def fit_probe(
    train: tuple[np.ndarray, np.ndarray],
    select: tuple[np.ndarray, np.ndarray],
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:
    """Fit the probe on (embeddings, labels) of train and choose its regularisation by balanced accuracy on select.

    Strengths are tried from the weakest fit up, each starting from the one before; of equals the simplest is kept.
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


_ARRAYS = ("mean", "scale", "weights", "bias", "present")


@dataclass(frozen=True)
class Frozen:
    """Embeddings of all images, float32 (n, d), in the order of the material, and the probe fitted on them."""

    embeddings: np.ndarray
    probe: Probe


def frozen_features(
    path: Path, key: str, material: Material, embed: Callable[[], np.ndarray], console: Console
) -> Frozen:
    """Return what an earlier try of the same run kept at `path`, or compute it and keep it.

    Args:
        key: of the run; a file of another run is made anew.
        embed: computes the embeddings.
    """
    kept = _load(path, key)
    if kept is not None:
        return kept
    embeddings = embed()
    parts = {role: (embeddings[material.rows(role)], material.labels[material.rows(role)]) for role in ROLES}
    console.print("Fitting the linear probe ...", highlight=False)
    found = Frozen(embeddings, fit_probe(parts["train"], parts["select"], len(material.codes)))
    _save(path, key, found, console)
    return found


def _load(path: Path, key: str) -> Frozen | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            if head.pop("key") != key:
                return None
            return Frozen(file["embeddings"], Probe(**{name: file[name] for name in _ARRAYS}, **head))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _save(path: Path, key: str, found: Frozen, console: Console) -> None:
    probe = found.probe
    head = {"key": key, "strength": probe.strength, "classes": probe.classes, "converged": probe.converged}
    arrays = {name: getattr(probe, name) for name in _ARRAYS}
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, head=np.array(json.dumps(head)), embeddings=found.embeddings, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        console.print(f"Warning: {path} could not be kept: {error.strerror or error}.", style="yellow", highlight=False)
