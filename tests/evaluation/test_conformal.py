"""Prediction sets: every class is covered as promised, rare ones by what is known of the others."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from dermlens.bundle.decision import PredictionSets, softmax
from dermlens.errors import BundleError
from dermlens.evaluation.conformal import fit_sets, measure_sets
from dermlens.text import wilson_interval

PRIOR = (0.6, 0.3, 0.1)


def sample(counts: tuple[int, ...], seed: int, sharpness: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a network that is right more often than not, and the truth."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(counts)), counts)
    logits = rng.normal(0, 1, (len(y), len(counts))) + np.log(PRIOR[: len(counts)])
    logits[np.arange(len(y)), y] += sharpness
    return softmax(logits), y


def test_each_class_is_covered_at_the_level_asked_for() -> None:
    p, y = sample((500, 300, 200), 0)
    sets, basis = fit_sets(p, y, np.arange(len(y)), PRIOR)
    p, y = sample((20000, 20000, 20000), 1)
    held = (np.log(PRIOR) - np.log(p)) <= np.array(sets.limits)
    for c in range(3):
        assert held[y == c, c].mean() == pytest.approx(0.9, abs=0.04)
    assert [b["basis"] for b in basis] == ["own"] * 3


def test_the_coverage_over_many_calibrations_is_at_least_the_level() -> None:
    """The guarantee is over the draw of the calibration lesions; without the + 1 it fails for few of them."""
    fresh, truth = sample((0, 0, 4000), 999)
    covered = []
    for seed in range(200):
        p, y = sample((0, 0, 12), seed)
        sets, _ = fit_sets(p, y, np.arange(12), PRIOR)
        covered.append(np.mean((math.log(PRIOR[2]) - np.log(fresh[:, 2])) <= sets.limits[2]))
    assert len(truth) == 4000 and 0.9 <= np.mean(covered) <= 0.95


def test_a_class_of_few_lesions_leans_on_the_other_rare_ones() -> None:
    p, y = sample((400, 25, 5), 0)
    sets, basis = fit_sets(p, y, np.arange(len(y)), PRIOR)
    assert [b["basis"] for b in basis] == ["own", "own_and_pool", "pool"]
    worst = (math.log(PRIOR[2]) - np.log(p[y == 2, 2])).max()
    assert math.isfinite(sets.limits[2]) and sets.limits[2] >= worst


def test_a_class_without_a_lesion_is_never_left_out() -> None:
    p, y = sample((400, 50), 0)
    p = np.column_stack([p * 0.999, np.full(len(p), 0.001)])
    sets, basis = fit_sets(p, y, np.arange(len(y)), PRIOR)
    assert sets.limits[2] == math.inf and basis[2]["basis"] == "none"
    assert sets.apply(p, PRIOR, p.argmax(1))[:, 2].all()
    assert msgspec.convert(sets.as_dict(), PredictionSets) == sets


def test_many_images_of_one_lesion_count_once() -> None:
    p, y = sample((200, 200, 200), 0)
    once, _ = fit_sets(p, y, np.arange(600), PRIOR)
    repeated = np.concatenate([np.arange(600), np.repeat(np.arange(100), 30)])
    again, _ = fit_sets(p[repeated], y[repeated], repeated, PRIOR)
    np.testing.assert_allclose(once.limits, again.limits)


def test_the_diagnosis_is_always_in_its_set() -> None:
    sets = PredictionSets(0.9, (-99.0, -99.0, -99.0), 2)
    inside = sets.apply(np.array([[0.2, 0.3, 0.5]]), PRIOR, np.array([1]))
    assert inside.tolist() == [[False, True, False]]


def test_measured_coverage_counts_lesions_and_has_an_interval() -> None:
    inside = np.array([[True, False], [True, True], [False, True], [True, False]])
    y, lesions = np.array([0, 0, 0, 1]), np.array([7, 8, 8, 9])
    found = measure_sets(inside, y, lesions, ("A", "B"))
    assert found["per_class"]["A"]["coverage"]["value"] == pytest.approx(0.75)
    assert found["per_class"]["B"]["coverage"]["value"] == 0 and found["by_size"] == {"1": 3, "2": 1}
    low, high = wilson_interval(0.9, 100)
    assert (low, high) == (pytest.approx(0.826, abs=1e-3), pytest.approx(0.945, abs=1e-3))


def test_damaged_facts_are_refused() -> None:
    with pytest.raises(BundleError):
        PredictionSets(level=1.5, limits=[1.0], max_size=1)
    with pytest.raises(msgspec.ValidationError, match="limits"):
        msgspec.convert({"level": 0.9, "max_size": 1}, PredictionSets)
