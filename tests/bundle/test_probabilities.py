"""probabilities.py: hand-worked probabilities, what it refuses, and its form in bundle.json."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from dermlens.bundle.probabilities import Calibration, probabilities, softmax
from dermlens.errors import BundleError

EVEN = Calibration(1.0, (0.5, 0.5))
HALF = (0.5, 0.5)


def test_probabilities_by_hand() -> None:
    logits = np.array([[np.log(3.0), 0.0]], dtype=np.float32)
    np.testing.assert_allclose(probabilities(logits, EVEN, HALF), [[0.75, 0.25]], atol=1e-7)


def test_temperature_divides_the_logits() -> None:
    hot = Calibration(2.0, HALF)
    expected = np.sqrt(3) / (np.sqrt(3) + 1)
    np.testing.assert_allclose(probabilities([[np.log(3.0), 0.0]], hot, HALF)[0, 0], expected)


def test_another_case_mix_by_hand() -> None:
    """Seen as 1:1, meant at 9:1, so odds of 1:3 become 9:3."""
    np.testing.assert_allclose(probabilities([[0.0, np.log(3.0)]], EVEN, (0.9, 0.1)), [[0.75, 0.25]])


def test_at_the_mix_that_the_network_saw_nothing_is_shifted() -> None:
    seen = (0.7, 0.2, 0.1)
    logits = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(probabilities(logits, Calibration(1.0, seen), seen), softmax(logits))


@pytest.mark.parametrize("n_classes", [2, 100])
def test_types_shapes_and_sums(n_classes: int) -> None:
    share = (1.0 / n_classes,) * n_classes
    calibration = Calibration(0.5, share)
    logits = np.random.default_rng(1).normal(scale=50, size=(7, n_classes)).astype(np.float32)
    values = probabilities(logits, calibration, share)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values.sum(axis=1), 1.0)


def test_no_rows_give_no_rows() -> None:
    assert probabilities(np.empty((0, 2), dtype=np.float32), EVEN, HALF).shape == (0, 2)


def test_huge_logits_do_not_overflow() -> None:
    np.testing.assert_allclose(probabilities([[1e30, -1e30]], EVEN, HALF), [[1.0, 0.0]])
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0]])), [[0.5, 0.5]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_an_error(bad: float) -> None:
    with pytest.raises(BundleError, match="1 of 2 rows, first in row 1") as caught:
        probabilities([[0.0, 1.0], [bad, 0.0]], EVEN, HALF)
    assert caught.value.code == "not_finite"


@pytest.mark.parametrize("logits", [[0.0, 1.0], [[0.0, 1.0, 2.0]], [[[0.0, 1.0]]]])
def test_wrong_shape_is_an_error(logits: Any) -> None:
    with pytest.raises(BundleError, match=r"\(n, 2\)") as caught:
        probabilities(logits, EVEN, HALF)
    assert caught.value.code == "shape"


@pytest.mark.parametrize(
    ("temperature", "training_prior"),
    [
        (0.0, HALF),
        (-1.0, HALF),
        (float("nan"), HALF),
        (1.0, (0.5, 0.6)),
        (1.0, (1.0, 0.0)),
        (1.0, (float("nan"), 0.5)),
        (1.0, (1.0,)),
    ],
)
def test_senseless_calibration_is_refused(temperature: float, training_prior: tuple[float, ...]) -> None:
    with pytest.raises(BundleError):
        Calibration(temperature, training_prior)


@pytest.mark.parametrize("bias", [(0.1,), (0.1, 0.2, 0.3), (float("nan"), 0.0), (0.0, float("inf"))])
def test_senseless_biases_are_refused(bias: tuple[float, ...]) -> None:
    with pytest.raises(BundleError, match="bias must be 2 finite numbers"):
        Calibration(1.0, HALF, bias)


def test_a_bias_is_added_to_the_log_odds() -> None:
    plain, biased = EVEN, Calibration(1.0, HALF, (1.0, -0.5))
    odds = [np.diff(np.log(probabilities([[0.3, 0.9]], each, HALF)))[0, 0] for each in (plain, biased)]
    assert odds[1] - odds[0] == pytest.approx(-1.5)


def test_through_json_and_back() -> None:
    calibration = Calibration(1.3, (0.4, 0.3, 0.3), (0.1, -0.2, 0.05))
    assert msgspec.convert(json.loads(json.dumps(calibration.as_dict())), Calibration) == calibration


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 1.0},
        {"temperature": "1", "training_prior": [0.5, 0.5], "bias": [0, 0]},
        {"temperature": 1.0, "training_prior": "half", "bias": [0, 0]},
        {"temperature": 1.0, "training_prior": [0.5, None], "bias": [0, 0]},
        {"temperature": 1.0, "prior": [0.5, 0.5], "training_prior": [0.5, 0.5]},
    ],
)
def test_damaged_calibration_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises((BundleError, msgspec.ValidationError)):
        msgspec.convert(values, Calibration)
