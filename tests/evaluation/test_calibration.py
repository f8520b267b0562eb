"""calibration.py: known temperatures and biases are found again; another mix is Bayes' rule; few lesions do no harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dermlens.bundle.card_text import bias_words
from dermlens.bundle.limits import mix_weights
from dermlens.bundle.probabilities import Calibration, probabilities
from dermlens.errors import BundleError, DataError, UsageError
from dermlens.evaluation import metrics
from dermlens.evaluation.calibration import (
    BIAS_VARIANCE,
    MIN_LESIONS,
    PARTS,
    SEPARATED,
    choose_calibration,
    fit_calibration,
)

PRIOR = (0.6, 0.25, 0.1, 0.05)
SEEN = (0.25, 0.25, 0.25, 0.25)
BIAS = np.array([0.9, -0.7, 0.4, -0.6])
AT: dict[str, Any] = {"shares": PRIOR, "training_prior": SEEN}


def synthetic(
    temperature: float, n: int = 4000, prior: tuple[float, ...] = PRIOR, seen: tuple[float, ...] = SEEN
) -> tuple[Any, Any]:
    """Draw labels at `prior` and the logits of a network that saw `seen` and is off by `temperature`.

    Normal features around each class's unit vector: these logits are exact, up to a constant a row.
    """
    generator = np.random.default_rng(7)
    classes = len(prior)
    y = generator.choice(classes, n, p=prior)
    features = generator.normal(size=(n, classes)) + 1.5 * np.eye(classes)[y]
    return (temperature * (1.5 * features + np.log(seen))).astype(np.float32), y


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_known_temperature_is_found_again(temperature: float) -> None:
    logits, y = synthetic(temperature)
    fitted = fit_calibration(logits, y, shares=PRIOR, training_prior=SEEN)
    assert fitted.temperature == pytest.approx(temperature, rel=0.06)
    assert fitted.training_prior == SEEN


def test_no_other_temperature_is_likelier() -> None:
    logits, y = synthetic(2.0, n=500)
    shares = tuple(np.bincount(y, minlength=4) / len(y))
    best = fit_calibration(logits, y, shares=shares, training_prior=SEEN).temperature

    def loss(temperature: float) -> float:
        return metrics.log_loss(y, probabilities(logits, Calibration(temperature, SEEN), shares))

    grid = np.geomspace(0.05, 20, 400)
    assert loss(best) <= min(loss(float(t)) for t in grid)


def test_calibrated_probabilities_are_better_calibrated() -> None:
    logits, y = synthetic(3.0)
    fitted = fit_calibration(logits, y, shares=PRIOR, training_prior=SEEN)
    raw = Calibration(1.0, SEEN)
    before = metrics.expected_calibration_error(y, probabilities(logits, raw, PRIOR))
    after = metrics.expected_calibration_error(y, probabilities(logits, fitted, PRIOR))
    assert after < 0.03 < before


def test_images_at_another_prior_do_not_bend_the_fit() -> None:
    logits, y = synthetic(2.0, n=8000, prior=SEEN)
    fitted = fit_calibration(logits, y, shares=PRIOR, training_prior=SEEN)
    assert fitted.temperature == pytest.approx(2.0, rel=0.06)


def test_a_lesion_counts_once() -> None:
    logits, y = synthetic(2.0, n=300)
    times = np.where(np.arange(300) < 20, 30, 1)
    once = fit_calibration(logits, y, shares=PRIOR, training_prior=SEEN)
    groups = np.repeat(np.arange(300), times)
    repeated = fit_calibration(
        np.repeat(logits, times, axis=0), np.repeat(y, times), groups, shares=PRIOR, training_prior=SEEN
    )
    assert repeated.temperature == pytest.approx(once.temperature)


def test_classes_without_images_do_no_harm() -> None:
    logits, y = synthetic(2.0)
    kept = y < 2
    fitted = fit_calibration(logits[kept], y[kept], shares=PRIOR, training_prior=SEEN)
    assert 1.0 < fitted.temperature < 4.0
    only = y == 0
    fitted = fit_calibration(logits[only], y[only], shares=PRIOR, training_prior=SEEN)
    assert 0.05 <= fitted.temperature <= 20.0


def test_perfect_images_leave_the_temperature_at_one() -> None:
    y = np.arange(40) % 4
    fitted = fit_calibration(10.0 * np.eye(4)[y], y, shares=SEEN, training_prior=SEEN)
    assert fitted.temperature == 1.0


def test_a_network_that_is_surely_wrong_is_cooled_to_the_bound() -> None:
    y = np.arange(40) % 4
    fitted = fit_calibration(10.0 * np.eye(4)[(y + 1) % 4], y, shares=SEEN, training_prior=SEEN)
    assert fitted.temperature == 20.0


@pytest.mark.parametrize("n_classes", [2, 100])
def test_two_and_a_hundred_classes(n_classes: int) -> None:
    share = (1.0 / n_classes,) * n_classes
    logits, y = synthetic(2.0, n=3000, prior=share, seen=share)
    fitted = fit_calibration(logits, y, shares=share, training_prior=share)
    assert fitted.temperature == pytest.approx(2.0, rel=0.08)


def test_too_few_lesions_are_refused() -> None:
    logits, y = synthetic(1.0, n=MIN_LESIONS - 1)
    with pytest.raises(DataError, match=f"got {MIN_LESIONS - 1} in {MIN_LESIONS - 1} images") as caught:
        fit_calibration(logits, y, shares=PRIOR, training_prior=SEEN)
    assert caught.value.code == "too_few_to_calibrate"
    logits, y = synthetic(1.0, n=100)
    with pytest.raises(DataError, match="got 5 in 100 images"):
        fit_calibration(logits, y, np.arange(100) % 5, shares=PRIOR, training_prior=SEEN)


def test_no_images_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="got 0 in 0 images"):
        fit_calibration(np.empty((0, 4)), np.empty(0, dtype=int), shares=PRIOR, training_prior=SEEN)


def test_rows_that_do_not_match_are_refused() -> None:
    logits, y = synthetic(1.0, n=100)
    with pytest.raises(UsageError):
        fit_calibration(logits, y[:-1], shares=PRIOR, training_prior=SEEN)
    logits[3, 1] = np.nan
    with pytest.raises(BundleError, match="first in row 3"):
        fit_calibration(logits, y, shares=PRIOR, training_prior=SEEN)


def biased(n: int) -> tuple[Any, Any]:
    """Logits off by the temperature 2 and by BIAS."""
    logits, y = synthetic(2.0, n)
    return (logits - 2.0 * BIAS).astype(np.float32), y


def test_known_biases_are_found_again() -> None:
    logits, y = biased(8000)
    fitted = fit_calibration(logits, y, **AT, bias=True)
    assert fitted.temperature == pytest.approx(2.0, rel=0.06)
    np.testing.assert_allclose(fitted.bias, BIAS, atol=0.15)
    assert fit_calibration(logits, y, **AT).bias == (0.0,) * 4


def test_no_other_temperature_and_biases_are_likelier_under_the_prior_of_the_biases() -> None:
    logits, y = biased(300)
    shares = tuple(np.bincount(y, minlength=4) / len(y))  # every image weighs 1
    best = fit_calibration(logits, y, shares=shares, training_prior=SEEN, bias=True)

    def loss(inverse: float, bias: np.ndarray) -> float:
        fitted = Calibration(1 / inverse, SEEN, tuple(bias))
        errors = metrics.log_errors(y, probabilities(logits, fitted, shares))
        return float(errors.sum() + np.sum(bias**2) / (2 * BIAS_VARIANCE))

    least, bias = loss(1 / best.temperature, np.array(best.bias)), np.array(best.bias)
    for away in np.vstack([np.eye(4), -np.eye(4)]) * 1e-2:
        assert loss(1 / best.temperature, bias + away) > least
    for factor in (0.99, 1.01):
        assert loss(factor / best.temperature, bias) > least


def test_few_lesions_shrink_the_biases() -> None:
    logits, y = biased(8000)
    few = fit_calibration(logits[:60], y[:60], **AT, bias=True)
    many = fit_calibration(logits, y, **AT, bias=True)
    assert np.abs(few.bias).max() < np.abs(many.bias).max()
    assert np.isfinite(few.bias).all()


def test_biases_are_the_same_however_many_images_a_lesion_has() -> None:
    logits, y = biased(400)
    once = fit_calibration(logits, y, **AT, bias=True)
    times = np.random.default_rng(3).integers(1, 4, 400)
    groups = np.repeat(np.arange(400), times).tolist()
    again = fit_calibration(np.repeat(logits, times, axis=0), np.repeat(y, times), groups, **AT, bias=True)
    np.testing.assert_allclose(again.bias, once.bias, atol=1e-6)


@pytest.mark.parametrize("scale", [0.05, 1.0, 1e3])
def test_any_scale_of_logits_is_fitted(scale: float) -> None:
    logits, y = biased(300)
    shares = tuple(np.bincount(y, minlength=4) / len(y))
    fitted = fit_calibration(scale * logits, y, shares=shares, training_prior=SEEN, bias=True)
    assert 0.05 <= fitted.temperature <= 20.0 and any(fitted.bias)
    alone = Calibration(fitted.temperature, SEEN)
    after, before = (metrics.log_loss(y, probabilities(scale * logits, each, shares)) for each in (fitted, alone))
    assert after < before


def test_a_class_without_images_gives_no_biases() -> None:
    logits, y = biased(400)
    kept = y != 3
    assert fit_calibration(logits[kept], y[kept], **AT, bias=True).bias == (0.0,) * 4
    fitted, found = choose_calibration(logits[kept], y[kept], **AT, seed=0)
    assert not any(fitted.bias) and not found.kept
    assert found.reason == f"a class has 0 lesions to fit a bias on, each needs {PARTS}"
    assert bias_words(found.as_dict()) == f"No bias by class: {found.reason}."


def test_biases_are_kept_where_they_help_on_other_lesions() -> None:
    logits, y = biased(800)
    fitted, found = choose_calibration(logits, y, **AT, seed=1)
    assert found.kept and fitted == fit_calibration(logits, y, **AT, bias=True)
    assert found.gain is not None and found.standard_error is not None and found.gain > found.standard_error > 0
    assert found.log_loss_temperature is not None and found.log_loss_bias is not None
    assert found.gain == pytest.approx(found.log_loss_temperature - found.log_loss_bias)
    assert "is used" in bias_words(found.as_dict())
    assert (fitted, found) == choose_calibration(logits, y, **AT, seed=1)


def test_biases_are_left_out_where_there_are_none() -> None:
    logits, y = synthetic(2.0, 800)
    fitted, found = choose_calibration(logits, y, **AT, seed=1)
    assert not found.kept and found.reason is None and fitted == fit_calibration(logits, y, **AT)
    assert "is not used" in bias_words(found.as_dict())


def test_the_standard_error_counts_lesions_and_not_images() -> None:
    logits, y = biased(400)
    once = choose_calibration(logits, y, **AT, seed=0)[1]
    groups = np.tile(np.arange(400), 3).tolist()
    thrice = choose_calibration(np.tile(logits, (3, 1)), np.tile(y, 3), groups, **AT, seed=0)[1]
    assert thrice.standard_error == pytest.approx(once.standard_error, rel=1e-6)
    assert thrice.gain == pytest.approx(once.gain, rel=1e-6)


def test_perfect_images_leave_the_biases_at_zero() -> None:
    y = np.arange(40) % 4
    fitted, found = choose_calibration(10.0 * np.eye(4)[y], y, shares=SEEN, training_prior=SEEN, seed=0)
    assert fitted.temperature == 1.0 and not any(fitted.bias) and found.reason == SEPARATED


def test_changing_the_mix_is_bayes_rule_tested_against_a_re_weighted_sample() -> None:
    """Probabilities at another mix are those of a sample that has this mix (Saerens 2002), without a new fit."""
    logits, y = biased(40_000)
    fitted = fit_calibration(logits, y, **AT, bias=True)
    other = (0.1, 0.2, 0.3, 0.4)
    weights = mix_weights(y, np.arange(len(y)), other)
    again = fit_calibration(logits, y, shares=other, training_prior=SEEN, bias=True)
    here, there = (probabilities(logits, each, other) for each in (fitted, again))
    assert weights @ np.abs(here - there).sum(axis=1) < 0.03, "a fit at the other mix says the same"
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(y), 40_000, p=weights)
    for c in range(4):
        value, truth = here[drawn, c], y[drawn] == c
        order = np.array_split(np.argsort(value), 10)
        gaps = [abs(value[rows].mean() - truth[rows].mean()) for rows in order]
        errors = [np.sqrt(max(truth[rows].mean(), 0.01) / len(rows)) for rows in order]
        assert (np.array(gaps) < 5 * np.array(errors) + 0.01).all(), f"of so many % it is class {c}"
    before = probabilities(logits, fitted, PRIOR)
    by_hand = before * (np.array(other) / PRIOR)
    np.testing.assert_allclose(here, by_hand / by_hand.sum(axis=1, keepdims=True), atol=1e-9)
    drawn_shares = probabilities(logits[drawn], fitted, other).mean(axis=0)
    np.testing.assert_allclose(drawn_shares, other, atol=0.01)
    assert abs(before[drawn].mean(axis=0) - other).max() > 0.05, "at the old mix they are wrong there"


def test_probabilities_of_a_mix_are_calibrated_in_a_sample_of_that_mix_and_of_no_other() -> None:
    logits, y = synthetic(2.0, 20_000)
    fitted, other = fit_calibration(logits, y, **AT), (0.25, 0.25, 0.25, 0.25)
    drawn = np.random.default_rng(1).choice(len(y), 20_000, p=mix_weights(y, np.arange(len(y)), other))
    at_mix, at_old = (probabilities(logits[drawn], fitted, shares) for shares in (other, PRIOR))
    weighted = metrics.expected_calibration_error(
        y, probabilities(logits, fitted, other), weights=mix_weights(y, np.arange(len(y)), other)
    )
    assert metrics.expected_calibration_error(y[drawn], at_mix) < 0.025 > weighted
    assert metrics.expected_calibration_error(y[drawn], at_old) > 0.08
