"""bootstrap.py: lesions stay whole, classes stay full, intervals are as wide as they should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.evaluation import bootstrap, metrics


def wilson(hits: int, n: int) -> tuple[float, float]:
    z, p = 1.959964, hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(centre - half), float(centre + half)


def weights_of(y: Any, lesions: Any, resamples: int = 200, seed: int = 0) -> Any:
    blocks = bootstrap.resample_weights(np.array(y), np.array(lesions), resamples=resamples, seed=seed)
    return np.concatenate(list(blocks))


def test_lesions_are_drawn_whole_and_within_their_class() -> None:
    y = [0, 0, 0, 1, 1, 1, 1]
    lesions = [0, 0, 1, 2, 3, 4, 4]
    weights = weights_of(y, lesions)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[:, 5], weights[:, 6])
    np.testing.assert_array_equal(weights[:, 0] + weights[:, 2], 2)
    np.testing.assert_array_equal(weights[:, 3] + weights[:, 4] + weights[:, 5], 3)
    assert weights[:, 0].std() > 0


@pytest.mark.parametrize("off", [0.0, 0.05, 0.1])
def test_an_error_of_calibration_without_its_bias_is_nearer_to_the_truth_and_not_below_it(off: float) -> None:
    """300 lesions, each probability too high by `off`: the plain error is too high, most of all where there is none."""
    rng = np.random.default_rng(0)
    confidence, y = rng.uniform(0.3, 1.0, 300), np.arange(300) % 3
    weights, bins = bootstrap.weightings(y, np.arange(300), seed=0, resamples=200), metrics.equal_mass_bins(confidence)
    true, found = confidence - off, []
    for _ in range(60):
        errors = metrics.calibration_error(confidence, rng.random(300) < true, bins, weights)
        figure = bootstrap.debiased_error(errors, reason="no images")
        found.append([errors[0], figure["value"], figure["low"] <= off <= figure["high"]])
    plain, debiased, held = np.mean(found, axis=0)
    assert off < plain - 0.005 and off - 0.01 < debiased < plain - 0.005
    assert held > (0.8 if off else 0.1)


def test_an_error_that_cannot_be_given_says_why() -> None:
    assert bootstrap.debiased_error(np.array([np.nan, 0.1]), reason="no images")["reason"] == "no images"
    assert bootstrap.debiased_error(np.array([0.1, 0.3, 0.3]), reason="")["value"] == 0, "below 0 there is none"


def test_same_seed_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    y, lesions = np.arange(40) % 3, np.arange(40)
    np.testing.assert_array_equal(weights_of(y, lesions), weights_of(y, lesions))
    assert (weights_of(y, lesions) != weights_of(y, lesions, seed=1)).any()
    monkeypatch.setattr(bootstrap, "MAX_BLOCK_VALUES", 400)
    assert weights_of(y, lesions, resamples=25).shape == (25, 40)


def test_images_without_a_lesion_count_alone() -> None:
    index = bootstrap.lesion_index(["a", None, "a", "", float("nan"), None, "b"], 7)
    assert index.tolist() == [0, 1, 0, 2, 3, 4, 5]
    assert bootstrap.lesion_index(np.array([7, 7, 9]), 3).tolist() == [0, 0, 1]
    with pytest.raises(UsageError, match="got 1 for 2 images"):
        bootstrap.lesion_index(["a"], 2)


def test_lesion_takes_the_class_of_most_images() -> None:
    classes = bootstrap.lesion_classes(np.array([1, 1, 0, 2, 0]), np.array([0, 0, 0, 1, 1]))
    assert classes.tolist() == [1, 0]


@pytest.mark.parametrize(("hits", "n"), [(160, 200), (100, 200), (380, 400)])
def test_interval_of_a_share_is_that_of_wilson(hits: int, n: int) -> None:
    y = np.zeros(n, dtype=np.int64)
    correct = (np.arange(n) < hits).astype(float)
    samples = metrics.mean_loss(correct, weights_of(y, np.arange(n), resamples=2000))
    low, high, used = bootstrap.percentile_interval(samples[:, None])
    assert [low[0], high[0]] == pytest.approx(wilson(hits, n), abs=0.012)
    assert used.tolist() == [2000]


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(0)
    weights = weights_of(np.zeros(100, dtype=np.int64), np.arange(100), resamples=1000)
    correct = (generator.random((100, 400)) < 0.7).astype(float)
    low, high, _ = bootstrap.percentile_interval(weights @ correct / 100)
    covered = float(np.mean((low <= 0.7) & (high >= 0.7)))
    assert 0.91 <= covered <= 0.98


def test_views_of_one_lesion_do_not_narrow_the_interval() -> None:
    """Each of 50 lesions ten times over: ten times the images, the same knowledge."""
    y = np.zeros(500, dtype=np.int64)
    lesions = np.repeat(np.arange(50), 10)
    correct = (lesions < 35).astype(float)
    widths = []
    for groups in (lesions, np.arange(500)):
        samples = metrics.mean_loss(correct, weights_of(y, groups, resamples=1000))
        low, high, _ = bootstrap.percentile_interval(samples[:, None])
        widths.append(float(high[0] - low[0]))
    assert widths[0] == pytest.approx(widths[1] * np.sqrt(10), rel=0.1)


def test_resamples_that_cannot_tell_are_left_out_and_counted() -> None:
    samples = np.array([[1.0, np.nan, np.nan], [2.0, 3.0, np.nan], [3.0, 3.0, np.nan]])
    low, high, used = bootstrap.percentile_interval(samples)
    assert used.tolist() == [3, 2, 0]
    assert (low[1], high[1]) == (3.0, 3.0)
    assert np.isnan(low[2])


def two_models(n: int = 600, share_a: float = 0.8, share_b: float = 0.7) -> tuple[Any, Any, Any, Any]:
    generator = np.random.default_rng(4)
    y = generator.integers(0, 8, n)
    luck = generator.random(n)
    a = np.where(luck < share_a, y, (y + 1) % 8)
    b = np.where(luck < share_b, y, (y + 1) % 8)
    return y, a, b, [f"L{i // 2}" for i in range(n)]


def test_paired_difference_has_the_sign_of_the_better_model() -> None:
    y, a, b, groups = two_models()
    better = bootstrap.paired_difference(y, a, b, groups)
    worse = bootstrap.paired_difference(y, b, a, groups)
    assert 0 < better["low"] < better["value"] < better["high"]
    assert worse["value"] == pytest.approx(-better["value"])
    assert worse["low"] == pytest.approx(-better["high"])
    assert set(better) == {"value", "low", "high"}
    assert all(type(number) is float for number in better.values())


def test_paired_difference_of_one_model_is_zero() -> None:
    y, a, _, groups = two_models()
    assert bootstrap.paired_difference(y, a, a, groups) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_pairing_narrows_the_interval() -> None:
    """What both models find hard cancels out; two separate intervals would overlap here."""
    y, a, b, groups = two_models(share_a=0.74)
    accuracy = bootstrap.paired_difference(y, a, b, groups, "accuracy")
    assert accuracy["value"] == pytest.approx(float(np.mean(a == y) - np.mean(b == y)))
    assert accuracy["low"] > 0
    assert accuracy["high"] - accuracy["low"] < 0.05


def test_two_classes_and_classes_never_true() -> None:
    result = bootstrap.paired_difference([0, 1, 0, 1], [0, 1, 0, 1], [5, 0, 0, 1], [None] * 4)
    assert result["value"] == pytest.approx(0.5)
    assert np.isfinite(list(result.values())).all()


def test_bad_calls_are_refused() -> None:
    with pytest.raises(UsageError, match="2 labels and 1 decisions"):
        bootstrap.paired_difference([0, 1], [0, 1], [0], [None, None])
    with pytest.raises(UsageError, match="f1"):
        bootstrap.paired_difference([0, 1], [0, 1], [0, 1], [None, None], "f1")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Resamples"):
        bootstrap.paired_difference([0, 1], [0, 1], [0, 1], [None, None], resamples=0)


def test_resamples_that_all_agree_are_no_certainty() -> None:
    share = bootstrap.sampled_figure(np.ones(101), reason="", lesions=10)
    assert share["value"] == 1 and (share["low"], share["high"]) == pytest.approx(wilson(10, 10), abs=1e-3)
    assert bootstrap.sampled_figure(np.zeros(101), reason="") == {"value": 0.0, "low": None, "high": None}
    assert bootstrap.sampled_figure(np.full(101, np.nan), reason="none")["reason"] == "none"
    told_once = np.concatenate([[0.5], np.full(100, np.nan)])
    assert bootstrap.sampled_figure(told_once, reason="")["low"] is None, "no resample told"
    spread = bootstrap.sampled_figure(np.concatenate([[0.5], np.linspace(0, 1, 101)]), reason="", lesions=10)
    assert (spread["low"], spread["high"]) == pytest.approx((0.025, 0.975))
