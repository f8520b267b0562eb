"""Measured thresholds: the price is told at the case mix, lesions count once, few lesions are no certainty."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from dermlens.bundle.limits import mix_weights
from dermlens.evaluation.thresholds import decision_curve, measure_point
from dermlens.text import Figure

CODES = ("BCC", "MEL", "NV")
MIX = (0.1, 0.2, 0.7)
POINT = {"codes": ["BCC", "MEL"], "threshold": 0.2}


def sample(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of lesions that come as MIX says, and their classes."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=MIX)
    logits = rng.normal(0, 1, (n, 3)) + np.log(MIX)
    logits[np.arange(n), y] += 2
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True), y


def test_sensitivity_specificity_and_share_referred_are_those_of_the_mix() -> None:
    p, y = sample(4000, 1)
    found = measure_point(POINT, p, y, np.arange(4000), CODES, MIX)
    called = p[:, :2].sum(1) >= POINT["threshold"]
    per_class = [np.mean(called[y == c]) for c in range(3)]
    assert found["sensitivity"]["value"] == pytest.approx((per_class[0] + 2 * per_class[1]) / 3)
    assert found["specificity"]["value"] == pytest.approx(1 - per_class[2])
    assert found["referred"]["value"] == pytest.approx(np.dot(MIX, per_class))
    odds = 0.2 / 0.8
    benefit = 0.1 * per_class[0] + 0.2 * per_class[1] - 0.7 * per_class[2] * odds
    assert found["net_benefit"]["value"] == pytest.approx(benefit)
    for row in found.values():
        assert row["low"] < row["value"] < row["high"]


def test_figures_at_a_mix_are_those_of_lesions_drawn_from_it() -> None:
    p, y = sample(20_000, 2)
    rng, mix = np.random.default_rng(0), (0.5, 0.2, 0.3)
    drawn = rng.choice(len(y), 20_000, p=(np.array(mix) / np.bincount(y))[y])
    here = measure_point(POINT, p, y, np.arange(len(y)), CODES, mix)
    there = measure_point(POINT, p[drawn], y[drawn], np.arange(len(y)), CODES, np.bincount(y[drawn]) / len(y))
    for name in here:
        assert here[name]["value"] == pytest.approx(there[name]["value"], abs=0.015), name


@pytest.mark.parametrize("kept", [[], [2], [0, 1]])
def test_a_kind_of_lesion_that_is_not_there_has_null_figures_that_a_bundle_can_hold(kept: list[int]) -> None:
    p, y = sample(2000, 0)
    rows = np.flatnonzero(np.isin(y, kept))
    found = measure_point(POINT, p[rows], y[rows], rows, CODES, MIX)
    for name, value in found.items():
        msgspec.convert(json.loads(json.dumps(value, allow_nan=False)), Figure)
        assert set(value) >= {"value", "low", "high"}, name
    assert (found["sensitivity"]["value"] is None) == (kept in ([], [2]))
    assert (found["specificity"]["value"] is None) == (kept in ([], [0, 1]))


def test_a_threshold_that_misses_none_of_a_few_lesions_is_no_certainty() -> None:
    p = np.tile([0.05, 0.9, 0.05], (30, 1))
    p[15:] = [0.02, 0.03, 0.95]
    point = {"codes": ["MEL"], "threshold": 0.5}
    found = measure_point(point, p, np.repeat([1, 2], 15), np.arange(30), CODES, MIX)
    assert found["sensitivity"]["value"] == 1 and 0.75 < found["sensitivity"]["low"] < 0.85
    assert found["specificity"]["high"] == pytest.approx(1) and found["specificity"]["low"] < 0.85


def test_repeated_images_of_a_lesion_count_once() -> None:
    p, y = sample(500, 0)
    rows = np.concatenate([np.arange(500), np.repeat(np.flatnonzero(y == 1)[:3], 200)])
    once, again = (measure_point(POINT, p[r], y[r], r, CODES, MIX) for r in (np.arange(500), rows))
    for name in once:
        assert again[name]["value"] == pytest.approx(once[name]["value"]), name


def test_net_benefit_of_referring_everyone_is_beaten_by_a_good_model() -> None:
    p, y = sample(4000, 0)
    curve = decision_curve(p, y, np.full(4000, 1 / 4000), [0, 1])
    place = int(np.argmin(np.abs(np.array(curve["threshold"]) - 0.2)))
    assert curve["model"][place] > curve["everyone"][place]
    assert curve["everyone"][0] == pytest.approx(0.3 - 0.7 * 0.01 / 0.99, abs=0.03)


def test_a_decision_curve_is_drawn_at_the_mix_of_the_probabilities() -> None:
    p, y = sample(4000, 0)
    curve = decision_curve(p, y, mix_weights(y, np.arange(4000), (0.4, 0.4, 0.2)), [0, 1])
    assert curve["everyone"][0] == pytest.approx(0.8 - 0.2 * 0.01 / 0.99)
    point = measure_point({**POINT, "threshold": curve["threshold"][20]}, p, y, np.arange(4000), CODES, (0.4, 0.4, 0.2))
    assert curve["model"][20] == pytest.approx(point["net_benefit"]["value"])
