"""The whole of `metrics.json`: every figure of a model on a set of images, each with its 95 % interval.

Decisions are scored by accuracy, sensitivity and specificity; probabilities by AUC, ECE, Brier and log loss. Intervals
come from `bootstrap`. No figure is ever NaN: what the images cannot give is null, with a reason.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dermlens.bundle.case_mix import CaseMix
from dermlens.bundle.limits import mix_weights
from dermlens.errors import UsageError
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import (
    LEVEL,
    RESAMPLES,
    lesion_index,
    no_figure,
    percentile_interval,
    resample_weights,
)
from dermlens.evaluation.metrics import Floats, Ints

AT_SPECIFICITY = 0.9
METHOD = "percentile bootstrap over lesions, drawn within each class"

Figure = dict[str, Any]


@dataclass(frozen=True)
class _Images:
    """Checked inputs, and what is the same in every resample: cells of the confusion matrix and bins of the ECE."""

    truth: Ints
    probability: Floats
    decision: Ints
    lesions: Ints
    cells: Ints
    ece_bins: Ints
    mixed: Floats


@dataclass(frozen=True)
class _Measured:
    """One quantity: its values (k,), their limits (k,), and how many resamples gave each (k,)."""

    value: Floats
    low: Floats
    high: Floats
    used: Ints
    resamples: int

    def figure(self, k: int = 0, *, reason: str, lesions: int | None = None) -> Figure:
        """Return the figure; `reason` is why it is null; `lesions` marks it as a share of so many lesions."""
        value, low, high = (float(numbers[k]) for numbers in (self.value, self.low, self.high))
        if not np.isfinite(value):
            return no_figure(reason)
        if low == high and lesions and value in (0.0, 1.0):
            bound = ((1.0 - LEVEL) / 2.0) ** (1.0 / lesions)
            low, high = (bound, 1.0) if value == 1.0 else (0.0, 1.0 - bound)
            return {"value": value, "low": low, "high": high, "note": f"exact binomial limits, {lesions} lesions"}
        if low == high:
            return no_figure("the resamples do not differ: too few lesions or errors") | {"value": value}
        figure: Figure = {"value": value, "low": low, "high": high}
        if self.used[k] < self.resamples:
            figure["resamples_used"] = int(self.used[k])
        return figure


def score(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    decisions: npt.ArrayLike,
    groups: Iterable[Hashable | None],
    class_codes: Sequence[str],
    *,
    mix: CaseMix | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Score a model and return the structure of `metrics.json`.

    Every figure is `{"value", "low", "high"}`. A figure that the images cannot give has null values and a `reason`.
    Where the resamples do not differ, a share of 0 or 1 gets the exact binomial bound over lesions (Clopper and
    Pearson 1934), with a `note`; any other figure keeps its value and has null limits. Resamples without a figure are
    left out, and `resamples_used` counts the others. Averages run over the classes that have images. ECE keeps the
    bins of the full set in all resamples, is null below 100 images, and its interval is too high rather than too low,
    as resampling adds noise to each bin.

    Args:
        y_true: (n,) integers in 0..classes-1.
        probabilities: (n, classes), calibrated, rows sum to 1.
        decisions: (n,) integers in 0..classes-1.
        groups: n lesion ids; None for an image whose lesion is not known, which counts as its own.
        class_codes: the codes in the model's order.
        mix: the case mix of the probabilities: in ECE, Brier score and log loss each class counts as much as its share
            in it. None: the images count as they come.
        seed: of the bootstrap; resamples: 1000 by default.

    Raises:
        UsageError: no images, rows or classes that do not match, values that are not probabilities.
    """
    data = _check(y_true, probabilities, decisions, groups, class_codes, mix)
    figures = _bootstrap(data, resamples, seed)
    n, n_lesions = len(data.truth), int(data.lesions.max()) + 1
    one_class = "the images are all of one class"
    return {
        "n": n,
        "n_lesions": n_lesions,
        "classes": list(class_codes),
        "interval": {"level": LEVEL, "method": METHOD, "resamples": resamples, "seed": seed},
        "case_mix": "as the images come" if mix is None else mix.name,
        "accuracy": figures["accuracy"].figure(reason="no images", lesions=n_lesions),
        "balanced_accuracy": figures["balanced_accuracy"].figure(reason="no images"),
        "macro_auc": figures["macro_auc"].figure(reason=one_class),
        "ece": figures["ece"].figure(reason=f"{n} images; at least {metrics.MIN_ECE_IMAGES} are needed"),
        "brier": figures["brier"].figure(reason="no images"),
        "log_loss": figures["log_loss"].figure(reason="no images"),
        "per_class": {code: _class_figures(data, figures, c) for c, code in enumerate(class_codes)},
        "confusion_matrix": _confusion(data, figures["cells"], class_codes),
    }


def _check(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    decisions: npt.ArrayLike,
    groups: Iterable[Hashable | None],
    class_codes: Sequence[str],
    mix: CaseMix | None,
) -> _Images:
    truth, probability = metrics.check_probability(y_true, probabilities)
    decision = metrics.check_classes("decisions", decisions, probability.shape[1])
    if len(decision) != len(truth) or len(class_codes) != probability.shape[1]:
        raise UsageError(
            f"Rows and classes must match: got {len(truth)} labels and {len(decision)} decisions, "
            f"{probability.shape[1]} columns and {len(class_codes)} class codes.",
            remedy="Pass one row per image and one column per class, in the model's order.",
            code="shape",
        )
    lesions, mixed = lesion_index(groups, len(truth)), np.full(len(truth), 1 / len(truth))
    if mix is not None:
        mixed = mix_weights(truth, lesions, mix.of(class_codes))
    cells, bins = (
        truth * probability.shape[1] + decision,
        metrics.equal_mass_bins(probability.max(axis=1), weights=mixed),
    )
    return _Images(truth, probability, decision, lesions, cells, bins, mixed)


def _bootstrap(data: _Images, resamples: int, seed: int) -> dict[str, _Measured]:
    values = _measure(data, np.ones((1, len(data.truth))))
    drawn = resample_weights(data.truth, data.lesions, resamples=resamples, seed=seed)
    blocks = [_measure(data, weights) for weights in drawn]
    measured = {}
    for name, value in values.items():
        low, high, used = percentile_interval(np.concatenate([block[name] for block in blocks]))
        measured[name] = _Measured(value[0], low, high, used, resamples)
    return measured


def _measure(data: _Images, weights: Floats) -> dict[str, Floats]:
    """Return every quantity for every weighting, each (r, k)."""
    n_classes = data.probability.shape[1]
    counts = metrics.class_counts(data.truth, data.decision, n_classes, weights)
    curves = (metrics.roc(data.truth == c, data.probability[:, c], weights) for c in range(n_classes))
    pairs = [(metrics.area(curve), metrics.sensitivity_at(curve, AT_SPECIFICITY)) for curve in curves]
    auc, at_specificity = (np.stack(columns, axis=1) for columns in zip(*pairs, strict=True))
    brier, log_loss = (loss(data.truth, data.probability) for loss in (metrics.squared_errors, metrics.log_errors))
    confidence, correct = metrics.top_label(data.truth, data.probability)
    mixed = weights * data.mixed
    ece = metrics.calibration_error(confidence, correct, data.ece_bins, mixed)[:, None]
    occurring, unknown = np.unique(data.truth), np.full((len(weights), 1), np.nan)
    return {
        "accuracy": metrics.accuracy(counts)[:, None],
        "balanced_accuracy": metrics.balanced_accuracy(counts, occurring)[:, None],
        "macro_auc": auc[:, occurring].mean(axis=1, keepdims=True) if len(occurring) > 1 else unknown,
        "ece": ece if len(data.truth) >= metrics.MIN_ECE_IMAGES else unknown,
        "brier": metrics.mean_loss(brier, mixed)[:, None],
        "log_loss": metrics.mean_loss(log_loss, mixed)[:, None],
        "sensitivity": metrics.sensitivity(counts),
        "specificity": metrics.specificity(counts),
        "auc": auc,
        "sensitivity_at_90_specificity": at_specificity,
        "cells": metrics.cell_counts(data.cells, weights)[1],
    }


def _class_figures(data: _Images, figures: dict[str, _Measured], c: int) -> dict[str, Any]:
    own = data.truth == c
    n_lesions, others = (len(np.unique(data.lesions[side])) for side in (own, ~own))
    absent = "no images of this class" if not own.any() else "no images of another class"
    counted = {"sensitivity": n_lesions, "specificity": others, "auc": None, "sensitivity_at_90_specificity": n_lesions}
    shown = {name: figures[name].figure(c, reason=absent, lesions=count) for name, count in counted.items()}
    return {**shown, "n": int(own.sum()), "n_lesions": n_lesions}


def _confusion(data: _Images, cells: _Measured, class_codes: Sequence[str]) -> dict[str, Any]:
    """Return image counts with limits; a cell that is empty in the full set is empty in every resample."""
    size, where = len(class_codes), np.unique(data.cells)

    def table(numbers: Floats) -> Floats:
        filled = np.zeros(size * size)
        filled[where] = numbers
        return filled.reshape(size, size)

    return {
        "classes": list(class_codes),
        "rows": "true",
        "columns": "predicted",
        "value": table(cells.value).astype(int).tolist(),
        "low": table(cells.low).tolist(),
        "high": table(cells.high).tolist(),
    }
