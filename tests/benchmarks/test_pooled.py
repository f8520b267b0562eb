"""Trust on pooled folds: each calibrated by its own bundle, and no fit has seen the lesion that it is measured on."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pooled
import pytest
from folds import OutOfFold, draws
from pooled import BIASED, FITTED, RAW, SERVED, Pool, calibrated, coverage, crossfit, pool_folds, report

from dermlens.bundle.decision import Calibration, DecisionRule, PredictionSets, decide, softmax
from dermlens.bundle.quality import QualityLimits

CODES = ("BKL", "MEL", "NV")
PRIOR = (0.2, 0.2, 0.6)
RULE = DecisionRule("prior_adjusted", 1.0)


def made(n: int, seed: int, *, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right once they are divided by `scale`, and classes drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.2, (n, 3)) + np.log(PRIOR)
    truth = np.array([rng.choice(3, p=row) for row in softmax(logits)])
    return (scale * logits).astype(np.float32), truth


def pool(n: int = 600, *, scale: float = 3.0) -> Pool:
    logits, truth = made(n, 0, scale=scale)
    p = softmax(logits.astype(np.float64))
    calibration = Calibration(1.0, PRIOR, PRIOR)
    return Pool(CODES, truth, p, p, decide(p, calibration, RULE), None, {}, PRIOR, RULE)


def out_of_fold(number: int, scale: float, **trust: Any) -> OutOfFold:
    logits, truth = made(300, number, scale=scale)
    calibration = Calibration(scale, PRIOR, PRIOR)
    facts = {
        "prediction_sets": None,
        "min_confidence": 0.0,
        "operating_points": [],
        "referral": None,
        "novelty": {"threshold": 1.0},
        "quality": QualityLimits().as_dict(),
        **trust,
    }
    card = {"modality": "dermoscopy", "trust": facts}
    bundle: Any = SimpleNamespace(codes=CODES, calibration=calibration, decision_rule=RULE, card=card)
    part = OutOfFold(bundle, {}, logits[None], np.zeros((300, 1), np.float32))
    table = {
        "truth": truth,
        "decision": decide(part.probability(), calibration, RULE),
        "lesion": np.array([f"{number}-{i}" for i in range(300)]),
    }
    return replace(part, table=table)


def test_each_fold_passes_through_its_own_bundle() -> None:
    parts = {0: out_of_fold(0, 1.0), 1: out_of_fold(1, 5.0)}
    found = pool_folds(parts)
    np.testing.assert_allclose(found.probability[300:], softmax(parts[1].logits[0].astype(np.float64) / 5.0))
    np.testing.assert_allclose(found.raw[300:], softmax(parts[1].logits[0].astype(np.float64)))
    assert found.prior == pytest.approx(PRIOR) and found.inside is None and found.called == {}


def test_served_sets_and_thresholds_are_each_bundles_own() -> None:
    share = {"value": None, "low": None, "high": None}
    point = {"name": "melanoma_90", "codes": ["MEL"], "threshold": 0.3, "sensitivity": share, "specificity": share}
    wide, narrow = (PredictionSets(0.9, (limit,) * 3, 2).as_dict() for limit in (9.0, -9.0))
    parts = {
        0: out_of_fold(0, 1.0, prediction_sets=wide, operating_points=[point]),
        1: out_of_fold(1, 1.0, prediction_sets=narrow, operating_points=[{**point, "threshold": 0.0}]),
    }
    found = pool_folds(parts)
    assert found.inside is not None
    assert found.inside[:300].sum(axis=1).mean() > 2.5 and (found.inside[300:].sum(axis=1) == 1).all()
    melanoma = found.probability[:300, 1] >= 0.3
    assert found.called["melanoma_90"][:300].tolist() == melanoma.tolist() and found.called["melanoma_90"][300:].all()


def test_no_fit_sees_the_lesion_that_it_is_measured_on() -> None:
    first = pool(200)
    part = np.random.default_rng([0, 0]).integers(0, 2, 200)
    turned = np.where(part == 0, (first.truth + 1) % 3, first.truth)
    one = crossfit(first, parts=2, repeats=1, seed=0)
    other = crossfit(replace(first, truth=turned), parts=2, repeats=1, seed=0)
    for name in ("probability", "biased", "size"):
        before, after = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(before[part == 0], after[part == 0], err_msg=name)
        assert (before[part == 1] != after[part == 1]).any(), name
    for name, called in one.called.items():
        assert (called[part == 0] == other.called[name][part == 0]).all()


def test_an_overconfident_network_is_put_right_and_the_sets_cover() -> None:
    found, fitted = report(pool(1500), parts=5, repeats=2, seed=0)
    before, after = (found["calibration"][name]["ece"]["value"] for name in (RAW, FITTED))
    assert before > 0.1 > 2 * after and found["calibration"][RAW] == found["calibration"][SERVED]
    assert found["calibration"][BIASED]["log_loss"]["value"] < found["calibration"][RAW]["log_loss"]["value"]
    sets = found["sets"]["cross-fitted"]
    assert abs(sets["all"]["coverage"]["value"] - 0.9) < 0.03 and "as served" not in found["sets"]
    assert sets["per_class"]["MEL"]["lesions"] == int((pool(1500).truth == 1).sum())
    point = found["referral"]["cross-fitted"]["melanoma_90"]
    assert abs(point["sensitivity"]["value"] - 0.9) < 0.04
    assert point["thresholds"]["of"][0] <= point["thresholds"]["mean"] <= point["thresholds"]["of"][1]
    assert found["verdict"]["no_class_under_80"] and found["verdict"]["coverage_within_2_points"]
    text = "\n".join(pooled.lines({"method": "top", "folds": [0, 1], **found}))
    assert "2 of 5 folds (0, 1)" in text and "| melanoma_95 | cross-fitted | MEL (" in text
    assert pooled.plot(pool(1500), fitted.probability).startswith(b"\x89PNG")


def test_biases_put_right_what_a_temperature_cannot() -> None:
    logits, truth = made(3000, 1)
    right = softmax(logits.astype(np.float64))
    shifted = softmax(2.0 * logits.astype(np.float64) + np.array([1.0, -1.0, 0.0]))
    fitted = crossfit(replace(pool(3000), truth=truth, probability=shifted), parts=2, repeats=1, seed=0)
    assert np.abs(fitted.biased - right).max() < 0.1 < np.abs(fitted.probability - right).max()


def test_a_class_fails_only_when_its_whole_interval_lies_under_80_percent() -> None:
    one = pool(300)
    held = np.ones(300)
    melanoma = np.flatnonzero(one.truth == 1)
    held[melanoma[: len(melanoma) // 2]] = 0
    nevi = np.flatnonzero(one.truth == 2)
    held[nevi[: round(0.19 * len(nevi))]] = 0
    found = pooled.verdict(0.031, coverage(held, held, one, draws(one.truth, resamples=20)))
    assert found["classes_under_80"] == ["MEL"] and not found["no_class_under_80"]
    assert found["classes_whose_interval_reaches_under_80"] == ["MEL", "NV"]
    assert not found["ece_at_most_0.03"] and not found["coverage_within_2_points"]


def test_classes_without_a_known_malignancy_have_no_aims() -> None:
    plain = replace(pool(100), codes=("A", "B", "C"))
    assert set(calibrated(plain.raw, plain, draws(plain.truth, resamples=20))) == {"ece", "brier", "log_loss"}
