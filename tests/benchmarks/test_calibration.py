"""Trust on pooled folds: no fit has seen the lesion that it is measured on, and the aims are read from intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.folds import draws
from benchmarks.trust import calibration
from benchmarks.trust.calibration import (
    BIASED,
    FITTED,
    SERVED,
    Pool,
    calibrated,
    coverage,
    crossfit,
    pool_folds,
    report,
)
from dermlens.bundle.probabilities import softmax

CODES = ("BKL", "MEL", "NV")
PRIOR = (0.2, 0.2, 0.6)


def made(n: int, seed: int, *, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right at the equal mix once they are divided by `scale`, of classes that come as PRIOR says."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=PRIOR)
    logits = 1.3 * (rng.normal(0, 1, (n, 3)) + 1.3 * np.eye(3)[truth])
    return (scale * logits).astype(np.float32), truth


def pool(n: int = 600, *, scale: float = 3.0) -> Pool:
    logits, truth = made(n, 0, scale=scale)
    return Pool(CODES, truth, softmax(logits.astype(np.float64)))


def test_folds_are_pooled_at_the_equal_mix() -> None:
    folds = {}
    for number, prior in enumerate(((0.2, 0.2, 0.6), (0.4, 0.4, 0.2))):
        one, stated = pool(30), pool(30).probability * prior
        lesion = np.array([f"{number}-{i}" for i in range(30)])
        shares = stated / stated.sum(axis=1, keepdims=True)
        table = {"truth": one.truth, "probability": shares, "lesion": lesion, "codes": np.array(CODES)}
        folds[number] = (table, {"shares": prior} if number else {"rule": {"prior": prior, "bias": [0.0] * 3}})
    found = pool_folds("top", folds)
    assert found.codes == CODES and len(found.truth) == 60
    np.testing.assert_allclose(found.probability, np.tile(pool(30).probability, (2, 1)))


def test_no_fit_sees_the_lesion_that_it_is_measured_on() -> None:
    first = pool(200)
    part = np.random.default_rng([0, 0]).integers(0, 2, 200)
    turned = np.where(part == 0, (first.truth + 1) % 3, first.truth)
    one = crossfit(first, parts=2, repeats=1, seed=0)
    other = crossfit(replace(first, truth=turned), parts=2, repeats=1, seed=0)
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in ("probability", "biased")}
    pairs |= {method: (one.size[method], other.size[method]) for method in one.size}
    for name, (before, after) in pairs.items():
        np.testing.assert_array_equal(before[part == 0], after[part == 0], err_msg=name)
        assert (before[part == 1] != after[part == 1]).any(), name
    for name, referred in one.referred.items():
        assert (referred[part == 0] == other.referred[name][part == 0]).all()


def test_an_overconfident_network_is_put_right_and_the_sets_cover() -> None:
    found = report(pool(900), parts=3, repeats=1, seed=0)
    before, after = (found["calibration"][name]["ece"]["value"] for name in (SERVED, FITTED))
    assert before > 0.1 > after + 0.04
    assert found["calibration"][BIASED]["log_loss"]["value"] < found["calibration"][SERVED]["log_loss"]["value"]
    for sets in found["sets"].values():
        assert 0.88 < sets["all"]["coverage"]["value"] < 0.96 and sets["MEL"]["coverage"]["value"] > 0.87
    shorter, lengths = found["shorter"], {m: sets["all"]["mean_size"]["value"] for m, sets in found["sets"].items()}
    assert lengths[shorter] == min(lengths.values())
    assert found["sets"][shorter]["MEL"]["lesions"] == int((pool(900).truth == 1).sum())
    point = found["referral"]["melanoma_90"]
    assert abs(point["sensitivity"]["value"] - 0.9) < 0.04 and 0 < point["threshold"] < 1
    reached = list(found["verdict"].values())
    assert reached == [False, True, True], "the error as served is the one that is promised"
    text = calibration.table({"method": "top", "folds": [0, 1], **found})
    assert "2 of 5 folds of `top`. Calibration error at most 0.05: missed" in text


def test_biases_put_right_what_a_temperature_cannot() -> None:
    logits, truth = made(3000, 1)
    right = softmax(logits.astype(np.float64))
    shifted = softmax(2.0 * logits.astype(np.float64) + np.array([1.0, -1.0, 0.0]))
    fitted = crossfit(replace(pool(3000), truth=truth, probability=shifted), parts=2, repeats=1, seed=0)
    assert np.abs(fitted.biased - right).max() < 0.1 < np.abs(fitted.probability - right).max()


def test_a_class_fails_only_when_its_whole_interval_lies_under_80_percent() -> None:
    one = pool(300)
    nevi, inside = np.flatnonzero(one.truth == 2), np.ones(300)
    inside[nevi[: round(0.19 * len(nevi))]] = 0
    reached = list(calibration.verdict(0.051, coverage(inside, inside, one, draws(one.truth, resamples=20))).values())
    assert reached == [False, True, True], "its interval only begins under 80 %"
    melanoma = np.flatnonzero(one.truth == 1)
    inside[melanoma[: len(melanoma) // 2]] = 0
    reached = list(calibration.verdict(0.02, coverage(inside, inside, one, draws(one.truth, resamples=20))).values())
    assert reached == [True, False, False]


def test_classes_without_a_known_malignancy_have_no_aims() -> None:
    plain = replace(pool(100), codes=("A", "B", "C"))
    weights = draws(plain.truth, resamples=20)
    assert set(calibrated(plain.probability, plain, weights)) == {
        *("ece", "ece_debiased", "ece_their_mix", "brier", "log_loss")
    }
