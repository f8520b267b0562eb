"""Operating points: the sensitivity asked for is reached, its price is told, lesions count once."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dermlens.bundle.decision import OperatingPoint
from dermlens.evaluation.thresholds import aims, decision_curve, fit_points, measure_point

CODES = ("BCC", "MEL", "NV")


def sample(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=[0.1, 0.2, 0.7])
    logits = rng.normal(0, 1, (n, 3)) + np.log([0.1, 0.2, 0.7])
    logits[np.arange(n), y] += 2
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True), y


def test_aims_follow_what_is_known_of_the_classes() -> None:
    assert aims(CODES) == {"malignant": ("BCC", "MEL"), "melanoma": ("MEL",)}
    assert aims(("eczema", "psoriasis")) == {}
    assert aims(("BCC", "MEL")) == {"melanoma": ("MEL",)}, "where all is malignant there is nothing to tell apart"


def test_the_sensitivity_asked_for_is_reached_and_holds_on_others() -> None:
    p, y = sample(2000, 0)
    points = {point["name"]: point for point in fit_points(p, y, np.arange(2000), CODES)}
    assert set(points) == {"malignant_95", "malignant_90", "melanoma_95", "melanoma_90"}
    assert points["malignant_95"]["threshold"] < points["malignant_90"]["threshold"]
    same = measure_point(points["malignant_95"], p, y, np.arange(2000), CODES)
    assert 0.95 <= same["sensitivity"]["value"] < 0.96
    q, z = sample(4000, 1)
    other = measure_point(points["malignant_95"], q, z, np.arange(4000), CODES)
    assert other["sensitivity"]["value"] == pytest.approx(0.95, abs=0.03)
    called = q[:, :2].sum(1) >= points["malignant_95"]["threshold"]
    assert other["specificity"]["value"] == pytest.approx(np.mean(~called[z == 2]))
    assert other["referred"]["value"] == pytest.approx(called.mean())
    for row in other.values():
        assert row["low"] < row["value"] < row["high"]


@pytest.mark.parametrize("kept", [[], [2], [0, 1]])
def test_a_kind_of_lesion_that_is_not_there_has_null_figures_that_a_bundle_can_hold(kept: list[int]) -> None:
    p, y = sample(2000, 0)
    point = fit_points(p, y, np.arange(2000), CODES)[0]
    rows = np.flatnonzero(np.isin(y, kept))
    point |= measure_point(point, p[rows], y[rows], rows, CODES)
    read = OperatingPoint.from_dict(json.loads(json.dumps(point, allow_nan=False)))
    assert (read.sensitivity is None) == (kept in ([], [2]))
    assert (read.specificity is None) == (kept in ([], [0, 1]))


def test_a_threshold_that_misses_none_of_a_few_lesions_is_no_certainty() -> None:
    p = np.tile([0.05, 0.9, 0.05], (30, 1))
    p[15:] = [0.02, 0.03, 0.95]
    point = {"codes": ["MEL"], "threshold": 0.5}
    found = measure_point(point, p, np.repeat([1, 2], 15), np.arange(30), CODES)
    assert found["sensitivity"]["value"] == 1 and 0.75 < found["sensitivity"]["low"] < 0.85
    assert found["specificity"]["high"] == 1 and found["specificity"]["low"] < 0.85


def test_too_few_lesions_give_no_point() -> None:
    p, y = sample(2000, 0)
    assert fit_points(p, y, np.zeros(2000, int), CODES) == []


def test_repeated_images_of_a_lesion_do_not_move_the_threshold() -> None:
    p, y = sample(500, 0)
    rows = np.concatenate([np.arange(500), np.repeat(np.flatnonzero(y == 1)[:3], 200)])
    once, again = (fit_points(p[r], y[r], r, CODES) for r in (np.arange(500), rows))
    assert [a["threshold"] for a in once] == [b["threshold"] for b in again]


def test_net_benefit_of_referring_everyone_is_beaten_by_a_good_model() -> None:
    p, y = sample(4000, 0)
    curve = decision_curve(p, y, [0, 1])
    place = int(np.argmin(np.abs(np.array(curve["threshold"]) - 0.2)))
    assert curve["model"][place] > curve["everyone"][place]
    assert curve["everyone"][0] == pytest.approx(0.3 - 0.7 * 0.01 / 0.99, abs=0.03)
