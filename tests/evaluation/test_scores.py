"""scores.py: the structure of metrics.json, its agreement with metrics.py, and nulls in place of NaN."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dermlens.bundle.case_mix import make_mix
from dermlens.errors import UsageError
from dermlens.evaluation import metrics
from dermlens.evaluation.scores import score

CODES = ("AK", "BCC", "BKL", "DF", "MEL", "NV", "SCC", "VASC")


def sample(n_classes: int = 8, n: int = 600) -> tuple[Any, Any, Any, list[str]]:
    generator = np.random.default_rng(n_classes)
    y = np.concatenate([np.arange(n_classes), generator.integers(0, n_classes, n - n_classes)])
    logits = generator.normal(size=(n, n_classes))
    logits[np.arange(n), y] += 1.5
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    return y, p, p.argmax(axis=1), [f"L{i // 2}" for i in range(n)]


def strict_json(result: dict[str, Any]) -> str:
    return json.dumps(result, allow_nan=False)


def test_figures_are_those_of_the_plain_metrics() -> None:
    y, p, d, groups = sample()
    result = score(y, p, d, groups, CODES, resamples=200)
    assert (result["n"], result["n_lesions"], result["classes"]) == (600, 300, list(CODES))
    for name, expected in {
        "accuracy": metrics.accuracy_score(y, d),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, d),
        "macro_auc": metrics.macro_auc_score(y, p),
        "ece": metrics.expected_calibration_error(y, p),
        "brier": metrics.brier_loss(y, p),
        "log_loss": metrics.log_loss(y, p),
    }.items():
        assert result[name]["value"] == pytest.approx(expected), name
        assert result[name]["low"] < result[name]["high"], name
        if name != "ece":
            assert result[name]["low"] < expected < result[name]["high"], name
    melanoma = result["per_class"]["MEL"]
    at_90 = metrics.sensitivity_at_specificity(y == 4, p[:, 4], 0.9)
    assert melanoma["sensitivity"]["value"] == pytest.approx(metrics.sensitivity_scores(y, d, 8)[4])
    assert melanoma["specificity"]["value"] == pytest.approx(metrics.specificity_scores(y, d, 8)[4])
    assert melanoma["auc"]["value"] == pytest.approx(metrics.class_auc_scores(y, p)[4])
    assert melanoma["sensitivity_at_90_specificity"]["value"] == pytest.approx(at_90)
    assert melanoma["n"] == int((y == 4).sum())
    assert melanoma["n_lesions"] == len({g for g, c in zip(groups, y, strict=True) if c == 4})
    strict_json(result)


def test_confusion_matrix_is_rows_true_and_has_limits() -> None:
    y, p, d, groups = sample()
    matrix = score(y, p, d, groups, CODES, resamples=200)["confusion_matrix"]
    assert (matrix["rows"], matrix["columns"], matrix["classes"]) == ("true", "predicted", list(CODES))
    assert matrix["value"] == metrics.confusion_matrix(y, d, 8).tolist()
    value, low, high = (np.array(matrix[key]) for key in ("value", "low", "high"))
    assert ((low <= value) & (value <= high)).all()


def test_decisions_and_probabilities_are_scored_apart() -> None:
    y, p, d, groups = sample()
    one, other = (score(y, p, rows, groups, CODES, resamples=20) for rows in (d, (d + 1) % 8))
    assert one["balanced_accuracy"] != other["balanced_accuracy"]
    assert one["ece"] == other["ece"]
    assert one["macro_auc"] == other["macro_auc"]


def test_probabilities_are_scored_at_their_mix_and_decisions_as_the_images_come() -> None:
    y, p, d, groups = sample()
    mix = make_mix("clinic", {code: 1.0 + c for c, code in enumerate(CODES)}, CODES)
    plain, mixed = score(y, p, d, groups, CODES, resamples=20), score(y, p, d, groups, CODES, mix=mix, resamples=20)
    assert (plain["case_mix"], mixed["case_mix"]) == ("as the images come", "clinic")
    for name in ("accuracy", "balanced_accuracy", "macro_auc"):
        assert plain[name] == mixed[name]
    one_each = score(y, p, d, [None] * len(y), CODES, mix=mix, resamples=20)
    per_class = [metrics.log_loss(y[y == c], p[y == c]) for c in range(8)]
    assert one_each["log_loss"]["value"] == pytest.approx(np.average(per_class, weights=mix.of(CODES)))
    assert one_each["ece"]["value"] != plain["ece"]["value"] and one_each["brier"]["value"] != plain["brier"]["value"]


def test_same_seed_same_result() -> None:
    y, p, d, groups = sample()
    one, again, other = (score(y, p, d, groups, CODES, seed=seed, resamples=50) for seed in (0, 0, 1))
    assert strict_json(one) == strict_json(again)
    assert one["accuracy"] != other["accuracy"]


@pytest.mark.parametrize("n_classes", [2, 100])
def test_two_and_a_hundred_classes(n_classes: int) -> None:
    y, p, d, groups = sample(n_classes)
    codes = [f"C{c}" for c in range(n_classes)]
    result = score(y, p, d, groups, codes, resamples=100)
    assert list(result["per_class"]) == codes
    expected = metrics.balanced_accuracy_score(y, d)
    assert result["balanced_accuracy"]["value"] == pytest.approx(expected)
    strict_json(result)


def test_absent_class_is_null_with_the_reason() -> None:
    y, p, d, groups = sample()
    kept = y != 3
    groups = [group for group, keep in zip(groups, kept, strict=True) if keep]
    result = score(y[kept], p[kept], d[kept], groups, CODES, resamples=100)
    absent = result["per_class"]["DF"]
    nothing = {"value": None, "low": None, "high": None, "reason": "no images of this class"}
    assert absent["sensitivity"] == absent["auc"] == nothing
    assert absent["specificity"]["value"] is not None
    assert absent["n"] == absent["n_lesions"] == 0
    expected = metrics.balanced_accuracy_score(y[kept], d[kept])
    assert result["balanced_accuracy"]["value"] == pytest.approx(expected)
    assert result["macro_auc"]["value"] == pytest.approx(metrics.macro_auc_score(y[kept], p[kept]))
    strict_json(result)


def test_one_class_only() -> None:
    _, p, d, groups = sample()
    result = score(np.full(600, 4), p, d, groups, CODES, resamples=50)
    assert result["macro_auc"]["value"] is None
    assert result["macro_auc"]["reason"] == "the images are all of one class"
    assert result["per_class"]["MEL"]["specificity"]["reason"] == "no images of another class"
    strict_json(result)


def test_perfect_share_gets_the_exact_bound() -> None:
    """Five lesions of five right: Clopper and Pearson give 0.478 to 1."""
    y = np.array([0] * 5 + [1] * 5)
    p = np.where(y[:, None] == np.arange(2), 0.9, 0.1)
    result = score(y, p, y, [None] * 10, ("A", "B"), resamples=50)
    figure = result["per_class"]["A"]["sensitivity"]
    assert (figure["value"], figure["high"]) == (1.0, 1.0)
    assert figure["low"] == pytest.approx(0.4782, abs=1e-4)
    assert "5 lesions" in figure["note"]
    assert result["balanced_accuracy"]["value"] == 1.0
    assert result["balanced_accuracy"]["low"] is None
    assert "do not differ" in result["balanced_accuracy"]["reason"]
    strict_json(result)


def test_few_images_have_no_calibration_error() -> None:
    y, p, d, groups = sample(n=99)
    result = score(y, p, d, groups, CODES, resamples=20)
    assert result["ece"]["value"] is None
    assert "99 images" in result["ece"]["reason"]


def test_one_image_does_not_break_it() -> None:
    result = score([0], [[0.3, 0.7]], [1], ["L"], ("A", "B"), resamples=10)
    assert result["accuracy"]["value"] == 0.0
    assert result["accuracy"]["high"] == pytest.approx(0.975)
    strict_json(result)


def test_lesion_of_two_classes_counts_the_resamples_used() -> None:
    """The only image of class 1 belongs to a lesion of class 0, so some resamples lack it."""
    y = np.array([0, 0, 1] + [0] * 6)
    p = np.tile([0.6, 0.4], (9, 1))
    groups = ["a", "a", "a"] + [f"b{i}" for i in range(6)]
    result = score(y, p, np.array([0, 1, 1, 0, 1, 0, 0, 1, 0]), groups, ("A", "B"), resamples=200)
    assert 0 < result["balanced_accuracy"]["resamples_used"] < 200
    strict_json(result)


def test_bad_input_is_refused() -> None:
    y, p, d, groups = sample()
    for call in (
        (y, p, d, groups, CODES[:-1]),
        (y, p, d[:-1], groups, CODES),
        (y, p, d, groups[:-1], CODES),
        (y[:-1], p, d, groups, CODES),
        (y, p * 2, d, groups, CODES),
        (y + 1, p, d, groups, CODES),
    ):
        with pytest.raises(UsageError):
            score(*call)
