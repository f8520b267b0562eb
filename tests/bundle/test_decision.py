"""decision.py: hand-worked probabilities and decisions, what it refuses, and its form in bundle.json."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from dermlens.bundle.decision import Calibration, DecisionRule, decide, probabilities, softmax
from dermlens.errors import BundleError

EVEN = Calibration(1.0, (0.5, 0.5), (0.5, 0.5))
RARE = Calibration(1.0, (0.9, 0.1), (0.5, 0.5))
LARGEST = DecisionRule("largest_probability", 0.0)
BALANCED = DecisionRule("prior_adjusted", 1.0)


def test_probabilities_by_hand() -> None:
    logits = np.array([[np.log(3.0), 0.0]], dtype=np.float32)
    np.testing.assert_allclose(probabilities(logits, EVEN), [[0.75, 0.25]], atol=1e-7)


def test_temperature_divides_the_logits() -> None:
    hot = Calibration(2.0, (0.5, 0.5), (0.5, 0.5))
    expected = np.sqrt(3) / (np.sqrt(3) + 1)
    np.testing.assert_allclose(probabilities([[np.log(3.0), 0.0]], hot)[0, 0], expected)


def test_prior_shift_by_hand() -> None:
    """Seen as 1:1, meant at 9:1, so odds of 1:3 become 9:3."""
    np.testing.assert_allclose(probabilities([[0.0, np.log(3.0)]], RARE), [[0.75, 0.25]])


def test_decision_may_differ_from_the_largest_probability() -> None:
    values = probabilities([[0.0, np.log(3.0)]], RARE)
    assert decide(values, RARE, LARGEST).tolist() == [0]
    assert decide(values, RARE, BALANCED).tolist() == [1]
    assert decide(values, RARE, DecisionRule("prior_adjusted", 0.0)).tolist() == [0]


def test_full_strength_undoes_the_prior() -> None:
    """With a uniform training prior, the rule at strength 1 is the argmax of the logits."""
    generator = np.random.default_rng(0)
    prior = generator.dirichlet(np.ones(8))
    calibration = Calibration(1.7, tuple(prior / prior.sum()), (0.125,) * 8)
    logits = generator.normal(size=(200, 8)).astype(np.float32)
    values = probabilities(logits, calibration)
    assert decide(values, calibration, BALANCED).tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("n_classes", [2, 100])
def test_types_shapes_and_sums(n_classes: int) -> None:
    share = (1.0 / n_classes,) * n_classes
    calibration = Calibration(0.5, share, share)
    logits = np.random.default_rng(1).normal(scale=50, size=(7, n_classes)).astype(np.float32)
    values = probabilities(logits, calibration)
    decisions = decide(values, calibration, BALANCED)
    assert values.dtype == np.float64
    assert decisions.dtype == np.int64
    assert decisions.shape == (7,)
    np.testing.assert_allclose(values.sum(axis=1), 1.0)


def test_no_rows_give_no_rows() -> None:
    values = probabilities(np.empty((0, 2), dtype=np.float32), EVEN)
    assert values.shape == (0, 2)
    assert decide(values, EVEN, BALANCED).shape == (0,)


def test_huge_logits_do_not_overflow() -> None:
    np.testing.assert_allclose(probabilities([[1e30, -1e30]], EVEN), [[1.0, 0.0]])
    assert decide([[1.0, 0.0], [0.0, 1.0]], EVEN, BALANCED).tolist() == [0, 1]
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0]])), [[0.5, 0.5]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_an_error(bad: float) -> None:
    with pytest.raises(BundleError, match="1 of 2 rows, first in row 1") as caught:
        probabilities([[0.0, 1.0], [bad, 0.0]], EVEN)
    assert caught.value.code == "not_finite"
    with pytest.raises(BundleError) as caught:
        decide([[bad, 0.5]], EVEN, BALANCED)
    assert caught.value.code == "not_finite"


@pytest.mark.parametrize("logits", [[0.0, 1.0], [[0.0, 1.0, 2.0]], [[[0.0, 1.0]]]])
def test_wrong_shape_is_an_error(logits: Any) -> None:
    with pytest.raises(BundleError, match=r"\(n, 2\)") as caught:
        probabilities(logits, EVEN)
    assert caught.value.code == "shape"


@pytest.mark.parametrize("values", [[[2.0, -1.0]], [[0.5, 0.1]], [[3.0, 4.0]]])
def test_logits_are_not_taken_for_probabilities(values: list[list[float]]) -> None:
    with pytest.raises(BundleError) as caught:
        decide(values, EVEN, BALANCED)
    assert caught.value.code == "not_probabilities"


@pytest.mark.parametrize(
    ("temperature", "prior", "training_prior"),
    [
        (0.0, (0.5, 0.5), (0.5, 0.5)),
        (-1.0, (0.5, 0.5), (0.5, 0.5)),
        (float("nan"), (0.5, 0.5), (0.5, 0.5)),
        (1.0, (0.5, 0.6), (0.5, 0.5)),
        (1.0, (1.0, 0.0), (0.5, 0.5)),
        (1.0, (0.5, 0.5), (float("nan"), 0.5)),
        (1.0, (0.5, 0.5), (0.2, 0.3, 0.5)),
        (1.0, (1.0,), (1.0,)),
    ],
)
def test_senseless_calibration_is_refused(
    temperature: float, prior: tuple[float, ...], training_prior: tuple[float, ...]
) -> None:
    with pytest.raises(BundleError):
        Calibration(temperature, prior, training_prior)


@pytest.mark.parametrize("bias", [(0.1,), (0.1, 0.2, 0.3), (float("nan"), 0.0), (0.0, float("inf"))])
def test_senseless_biases_are_refused(bias: tuple[float, ...]) -> None:
    with pytest.raises(BundleError, match="bias must be 2 finite numbers"):
        Calibration(1.0, (0.5, 0.5), (0.5, 0.5), bias)


def test_a_bias_is_added_to_the_log_odds() -> None:
    plain, biased = EVEN, Calibration(1.0, (0.5, 0.5), (0.5, 0.5), (1.0, -0.5))
    odds = [np.diff(np.log(probabilities([[0.3, 0.9]], each)))[0, 0] for each in (plain, biased)]
    assert odds[1] - odds[0] == pytest.approx(-1.5)


def test_the_balanced_rule_leaves_the_bias_out_and_the_largest_probability_does_not() -> None:
    biased = Calibration(1.0, (0.5, 0.5), (0.5, 0.5), (1.0, -1.0))
    values = probabilities([[0.0, 1.0]], biased)
    assert values[0, 0] > values[0, 1]
    assert decide(values, biased, BALANCED).tolist() == [1]
    assert decide(values, biased, DecisionRule("largest_probability", 0.0)).tolist() == [0]


def test_through_json_and_back() -> None:
    calibration = Calibration(1.3, (0.7, 0.2, 0.1), (0.4, 0.3, 0.3), (0.1, -0.2, 0.05))
    assert msgspec.convert(json.loads(json.dumps(calibration.as_dict())), Calibration) == calibration
    assert msgspec.convert(json.loads(json.dumps(BALANCED.as_dict())), DecisionRule) == BALANCED


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 1.0, "prior": [0.5, 0.5]},
        {"temperature": "1", "prior": [0.5, 0.5], "training_prior": [0.5, 0.5], "bias": [0, 0]},
        {"temperature": 1.0, "prior": "half", "training_prior": [0.5, 0.5], "bias": [0, 0]},
        {"temperature": 1.0, "prior": [0.5, None], "training_prior": [0.5, 0.5], "bias": [0, 0]},
    ],
)
def test_damaged_calibration_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises((BundleError, msgspec.ValidationError)):
        msgspec.convert(values, Calibration)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "largest_probability"},
        {"kind": "coin", "strength": 1},
        {"kind": "prior_adjusted", "strength": 2},
    ],
)
def test_damaged_rule_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises((BundleError, msgspec.ValidationError)):
        msgspec.convert(values, DecisionRule)
