"""metrics.py against scikit-learn and against cases worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from dermlens.errors import UsageError
from dermlens.evaluation import metrics


def sample(n_classes: int, n: int = 400, decimals: int = 2) -> tuple[Any, Any, Any]:
    """Return labels with every class, probabilities with ties, and decisions."""
    generator = np.random.default_rng(n_classes)
    y = np.concatenate([np.arange(n_classes), generator.integers(0, n_classes, n - n_classes)])
    logits = generator.normal(size=(n, n_classes)).round(decimals - 1)
    logits[np.arange(n), y] += 1.0
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    return y, p, p.argmax(axis=1)


@pytest.mark.parametrize("n_classes", [2, 8, 100])
def test_decisions_agree_with_scikit_learn(n_classes: int) -> None:
    y, _, d = sample(n_classes)
    labels = np.arange(n_classes)
    recall = sklearn.metrics.recall_score(y, d, labels=labels, average=None)
    assert metrics.accuracy_score(y, d) == pytest.approx(sklearn.metrics.accuracy_score(y, d))
    expected = sklearn.metrics.balanced_accuracy_score(y, d)
    assert metrics.balanced_accuracy_score(y, d) == pytest.approx(expected)
    np.testing.assert_allclose(metrics.sensitivity_scores(y, d, n_classes), recall)
    expected = [sklearn.metrics.recall_score(y != c, d != c) for c in labels]
    np.testing.assert_allclose(metrics.specificity_scores(y, d, n_classes), expected)
    matrix = sklearn.metrics.confusion_matrix(y, d, labels=labels)
    np.testing.assert_array_equal(metrics.confusion_matrix(y, d, n_classes), matrix)


@pytest.mark.parametrize("n_classes", [2, 8, 100])
def test_probabilities_agree_with_scikit_learn(n_classes: int) -> None:
    y, p, _ = sample(n_classes)
    labels = np.arange(n_classes)
    each = [sklearn.metrics.roc_auc_score(y == c, p[:, c]) for c in labels]
    np.testing.assert_allclose(metrics.class_auc_scores(y, p), each)
    assert metrics.macro_auc_score(y, p) == pytest.approx(np.mean(each))
    if n_classes > 2:
        whole = sklearn.metrics.roc_auc_score(y, p, multi_class="ovr", labels=labels)
        assert metrics.macro_auc_score(y, p) == pytest.approx(whole)
    brier = sklearn.metrics.brier_score_loss(y, p, labels=labels, scale_by_half=False)
    assert metrics.brier_loss(y, p) == pytest.approx(brier)
    assert metrics.log_loss(y, p) == pytest.approx(sklearn.metrics.log_loss(y, p, labels=labels))


def test_balanced_accuracy_by_hand() -> None:
    """Class 0: 3 of 4, class 1: 1 of 2, class 2 only ever called."""
    y, d = [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 2]
    assert metrics.balanced_accuracy_score(y, d) == pytest.approx((0.75 + 0.5) / 2)
    assert np.isnan(metrics.sensitivity_scores(y, d, 3)[2])
    np.testing.assert_allclose(metrics.specificity_scores(y, d, 3), [1.0, 0.75, 5 / 6])
    assert metrics.confusion_matrix(y, d, 3).tolist() == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_auc_by_hand_with_a_tie() -> None:
    """Pairs: 0.8 beats both negatives, 0.4 ties with one and beats the other."""
    assert metrics.roc_auc_score([1, 1, 0, 0], [0.8, 0.4, 0.4, 0.1]) == pytest.approx(3.5 / 4)
    assert np.isnan(metrics.roc_auc_score([1, 1], [0.1, 0.2]))


def test_macro_auc_leaves_out_absent_classes() -> None:
    y, p, _ = sample(3)
    kept = y != 2
    scores = metrics.class_auc_scores(y[kept], p[kept])
    assert np.isnan(scores[2])
    assert metrics.macro_auc_score(y[kept], p[kept]) == pytest.approx(scores[:2].mean())
    only = np.zeros(5, dtype=int)
    assert np.isnan(metrics.macro_auc_score(only, p[:5]))


def test_sensitivity_at_specificity_by_hand() -> None:
    """Ten negatives: one false alarm is allowed at 90 %; the second comes before the last positive."""
    positive = [1, 1, 0, 1, 0, 1] + [0] * 8
    score = np.linspace(1.0, 0.1, 14)
    assert metrics.sensitivity_at_specificity(positive, score, 0.9) == pytest.approx(0.75)
    assert metrics.sensitivity_at_specificity(positive, score, 1.0) == pytest.approx(0.5)
    assert metrics.sensitivity_at_specificity(positive, score, 0.0) == pytest.approx(1.0)
    assert np.isnan(metrics.sensitivity_at_specificity([1, 1], [0.1, 0.2], 0.9))


def test_sensitivity_at_specificity_does_not_split_a_tie() -> None:
    assert metrics.sensitivity_at_specificity([1, 0, 0], [0.5, 0.5, 0.1], 0.9) == 0.0


def test_sensitivity_at_specificity_agrees_with_scikit_learn() -> None:
    y, p, _ = sample(8)
    fpr, tpr, _ = sklearn.metrics.roc_curve(y == 3, p[:, 3], drop_intermediate=False)
    expected = tpr[fpr <= 0.1 + 1e-12].max()
    assert metrics.sensitivity_at_specificity(y == 3, p[:, 3], 0.9) == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    """Two bins of four: sure 0.6 and right half the time, sure 0.9 and always right: (0.1 + 0.1) / 2."""
    confidence = np.array([0.6] * 4 + [0.9] * 4)
    p = np.stack([confidence, 1 - confidence], axis=1)
    y = [0, 0, 1, 1, 0, 0, 0, 0]
    assert metrics.expected_calibration_error(y, p, bins=2) == pytest.approx(0.1)
    assert metrics.expected_calibration_error(y, p, bins=1) == pytest.approx(0.0)


def test_calibration_error_does_not_depend_on_the_order() -> None:
    y, p, _ = sample(8)
    order = np.random.default_rng(0).permutation(len(y))
    there = metrics.expected_calibration_error(y, p)
    assert metrics.expected_calibration_error(y[order], p[order]) == pytest.approx(there)


def test_bins_hold_equally_many() -> None:
    bins = metrics.equal_mass_bins(np.random.default_rng(0).random(1500) ** 0.1, 15)
    assert np.bincount(bins).tolist() == [100] * 15


def test_bins_hold_equal_weight_and_equal_confidences_share_one() -> None:
    rng = np.random.default_rng(0)
    confidence, weights = rng.random(3000), rng.random(3000) ** 3
    mass = np.bincount(metrics.equal_mass_bins(confidence, 15, weights), weights=weights)
    np.testing.assert_allclose(mass / mass.sum(), 1 / 15, atol=0.002)
    once, often = metrics.equal_mass_bins(confidence[:300], 15, np.full(300, 3.0)), np.repeat(confidence[:300], 3)
    np.testing.assert_array_equal(np.repeat(once, 3), metrics.equal_mass_bins(often, 15))
    np.testing.assert_array_equal(metrics.equal_mass_bins(np.full(40, 0.7), 15), 7)


def test_losses_by_hand() -> None:
    p = [[0.5, 0.3, 0.2]]
    assert metrics.brier_loss([0], p) == pytest.approx(0.25 + 0.09 + 0.04)
    assert metrics.log_loss([0], p) == pytest.approx(np.log(2))
    assert np.isfinite(metrics.log_loss([0], [[0.0, 1.0]]))


@pytest.mark.parametrize(
    ("y", "p"),
    [
        ([], np.empty((0, 2))),
        ([0, 1], [[1.0, 0.0]]),
        ([0], [[1.0]]),
        ([2], [[1.0, 0.0]]),
        ([-1], [[1.0, 0.0]]),
        ([0.5], [[1.0, 0.0]]),
        ([0], [[np.nan, 1.0]]),
        ([0], [[3.0, -2.0]]),
        ([0], [[0.5, 0.4]]),
    ],
)
def test_bad_input_is_refused(y: Any, p: Any) -> None:
    with pytest.raises(UsageError):
        metrics.brier_loss(y, p)


def test_rows_must_match() -> None:
    with pytest.raises(UsageError, match="got 2 and 1"):
        metrics.accuracy_score([0, 1], [0])
    with pytest.raises(UsageError):
        metrics.roc_auc_score([0, 1], [0.5, np.nan])
    with pytest.raises(UsageError):
        metrics.sensitivity_at_specificity([0, 1], [0.5, 0.6], 90)
