"""limits.py: sets hold the truth as often as promised at any mix, thresholds reach their aim, lesions count once."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest

from dermlens.bundle.case_mix import CaseMix, equal_mix, make_mix
from dermlens.bundle.limits import (
    METHODS,
    MIN_LESIONS,
    Lesions,
    Limits,
    OperatingPoint,
    SetMethod,
    SetRule,
    aims,
    fit_limits,
    fit_set_limit,
    lesions_worth,
    measure_sets,
    mix_weights,
    no_lesions,
    order_of,
    set_scores,
    sides,
    weighted_quantile,
    weighted_share,
)
from dermlens.bundle.probabilities import Calibration, probabilities
from dermlens.errors import BundleError
from dermlens.text import wilson_interval

CODES = ("BCC", "MEL", "NV")
PRIOR = (0.2, 0.3, 0.5)
AS_IS = Calibration(1.0, PRIOR)
MIXES = (equal_mix(CODES), make_mix("rare", {"BCC": 4, "MEL": 1, "NV": 95}, CODES))


def sample(counts: tuple[int, ...], seed: int, *, images: int = 1) -> Lesions:
    """Lesions of each class with exact logits at PRIOR: normal features around each class's unit vector."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(len(counts)), counts)
    features = rng.normal(size=(len(classes), len(counts))) + 1.4 * np.eye(len(counts))[classes]
    logits = (1.4 * features + np.log(PRIOR)).astype(np.float32)
    lesions = np.arange(len(classes))
    return Lesions(*(np.repeat(each, images, axis=0) for each in (logits, classes, lesions)))


def limits(known: Lesions, mix: CaseMix, *, method: SetMethod = "cumulative", test: Lesions | None = None) -> Limits:
    roles = {"calibrate": known, "test": test or no_lesions(len(CODES))}
    return fit_limits(mix, CODES, AS_IS, roles, rule=SetRule(method), sensitivity=0.95)


def covered(found: Limits, fresh: Lesions, mix: CaseMix) -> tuple[float, float]:
    """Return how often sets hold the truth: averaged by the mix, and of melanomas."""
    inside = found.sets(probabilities(fresh.logits, AS_IS, mix.of(CODES)))
    assert inside is not None
    rows = measure_sets(inside, fresh, CODES, mix.of(CODES))
    return rows["coverage"]["value"], rows["per_class"]["MEL"]["coverage"]["value"]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.name)
@pytest.mark.parametrize("method", METHODS)
def test_sets_hold_the_true_class_in_nine_of_ten_lesions_of_the_mix_and_of_the_melanomas(
    method: SetMethod, mix: CaseMix
) -> None:
    """The promise is over the draw of the calibration lesions, whose classes are not as common as in the mix."""
    fresh = sample((1500, 1500, 1500), 999)
    known = [sample((15, 40, 120), seed) for seed in range(80)]
    all_of_mix, melanomas = np.mean([covered(limits(each, mix, method=method), fresh, mix) for each in known], axis=0)
    assert all_of_mix >= 0.895 and melanomas >= 0.895
    assert min(all_of_mix, melanomas) < 0.93, "no longer than is needed"


def test_without_the_weight_of_a_new_lesion_few_would_cover_too_little() -> None:
    fresh, mix = sample((1500, 1500, 1500), 998), equal_mix(CODES)
    shares, got = mix.of(CODES), []
    for seed in range(200):
        known = sample((7, 7, 7), seed)
        values = probabilities(known.logits, AS_IS, shares)
        scores = set_scores(values, "probability")[np.arange(21), known.classes]
        plain = weighted_quantile(scores, mix_weights(known.classes, known.lesions, shares), 0.9)
        corrected = fit_set_limit(values, known, ("A", "B", "C"), shares, "probability", 0.9)
        shown = set_scores(probabilities(fresh.logits, AS_IS, shares), "probability")
        own = shown[np.arange(len(fresh.classes)), fresh.classes]
        got.append([np.mean(own <= plain), np.mean(own <= corrected)])
    before, after = np.mean(got, axis=0)
    assert before < 0.89 < 0.895 <= after <= 0.94


@pytest.mark.parametrize("method", METHODS)
def test_a_set_is_a_beginning_of_the_order_and_holds_the_diagnosis(method: SetMethod) -> None:
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.full(6, 0.3), 300)
    probability[0], probability[1], probability[2] = 1 / 6, np.eye(6)[3], [0.5, 0.5, 0, 0, 0, 0]
    probability[3] = [0.25, 0.25, 0.25, 0.25, 0, 0]
    scores, order = set_scores(probability, method), order_of(probability)
    along = np.take_along_axis(scores, order, axis=1)
    assert (np.diff(along, axis=1) > 0).all(), "a tie has an order too"
    for limit in (-1.0, 0.0, 0.3, 0.5, 0.9, 1.0, math.inf):
        found = Limits(equal_mix("ABCDEF"), (1 / 6,) * 6, method, limit, 3, 0.5, (), None)
        inside = found.sets(probability)
        assert inside is not None and inside[np.arange(300), order[:, 0]].all()
        ordered = np.take_along_axis(inside, order, axis=1)
        assert (np.diff(ordered.astype(int), axis=1) <= 0).all()


def test_a_class_without_a_lesion_leaves_its_share_to_the_others() -> None:
    known = sample((60, 60, 0), 0)
    weights = mix_weights(known.classes, known.lesions, (0.2, 0.2, 0.6))
    assert weights.sum() == pytest.approx(1) and weights[:60].sum() == pytest.approx(0.5)
    found = limits(known, make_mix("own", {"BCC": 2, "MEL": 2, "NV": 6}, CODES))
    assert found.set_limit is not None and math.isfinite(found.set_limit)
    assert found.referral is None, "no lesion is on the other side"
    none = limits(no_lesions(3), equal_mix(CODES))
    assert none.set_limit is None and none.min_confidence == 0 and not none.points
    assert none.sets(np.full((2, 3), 1 / 3)) is None


def test_too_few_lesions_give_no_sets_and_too_few_of_a_side_no_point() -> None:
    few = limits(sample((6, 6, 7), 0), equal_mix(CODES))
    assert few.set_limit is None and few.min_confidence == 0 and few.referral is None
    sets_alone = limits(sample((5, 5, 40), 0), equal_mix(CODES))
    assert sets_alone.set_limit is not None and sets_alone.points == ()
    twenty = limits(sample((MIN_LESIONS - 5, 5, MIN_LESIONS), 0), equal_mix(CODES))
    assert [point.name for point in twenty.points] == ["malignant_95", "malignant_90"]
    plain = fit_limits(
        equal_mix(CODES),
        CODES,
        AS_IS,
        {"calibrate": sample((30, 30, 30), 0), "test": no_lesions(3)},
        rule=None,
        sensitivity=0.9,
    )
    assert plain.set_limit is None and plain.referral is not None and plain.referral.name == "malignant_90"


def test_one_class_with_so_few_lesions_that_nothing_is_sure_keeps_every_class() -> None:
    known = sample((40, 5, 40), 0)
    assert limits(known, equal_mix(CODES)).set_limit < 1.0, "90 % of 5 melanomas is more than 5 can tell: all of them"


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.name)
def test_a_threshold_is_the_largest_that_keeps_its_share_and_holds_on_others(mix: CaseMix) -> None:
    known, test = sample((150, 250, 600), 1), sample((2000, 2000, 4000), 2)
    found = limits(known, mix, test=test)
    points = {point.name: point for point in found.points}
    assert list(points) == ["malignant_95", "malignant_90", "melanoma_95", "melanoma_90"]
    assert found.referral is points["malignant_95"] and found.referral.codes == ("BCC", "MEL")
    assert points["malignant_95"].threshold < points["malignant_90"].threshold
    value, columns = probabilities(known.logits, AS_IS, mix.of(CODES)), [0, 1]
    grave = np.isin(known.classes, columns)
    weights = mix_weights(known.classes[grave], known.lesions[grave], mix.of(CODES))
    score, threshold = value[grave][:, columns].sum(axis=1), points["malignant_95"].threshold
    assert weights @ (score >= threshold) >= 0.95 - 1e-9 and weights @ (score > threshold) < 0.95
    assert points["malignant_95"].sensitivity["value"] == pytest.approx(0.95, abs=0.05)
    referred = probabilities(test.logits, AS_IS, mix.of(CODES))[:, columns].sum(axis=1) >= threshold
    assert points["malignant_95"].specificity["value"] == pytest.approx(np.mean(~referred[test.classes == 2]))
    expected = mix_weights(test.classes, test.lesions, mix.of(CODES)) @ referred
    assert points["malignant_95"].referred["value"] == pytest.approx(expected)
    sensitivities = [np.mean(referred[test.classes == c]) for c in columns]
    assert points["malignant_95"].sensitivity["value"] == pytest.approx(
        np.average(sensitivities, weights=np.array(mix.of(CODES))[columns])
    )


def test_a_threshold_that_was_measured_on_nothing_claims_nothing_and_a_bundle_can_hold_it() -> None:
    point = limits(sample((30, 30, 30), 0), equal_mix(CODES)).points[0]
    read = msgspec.convert(json.loads(json.dumps(point.as_dict(), allow_nan=False)), OperatingPoint)
    assert read.sensitivity["value"] is None and read.specificity["value"] is None and read.threshold > 0
    only_nevi = limits(sample((30, 30, 30), 0), equal_mix(CODES), test=sample((0, 0, 30), 1)).points[0]
    assert only_nevi.sensitivity["value"] is None and only_nevi.specificity["value"] is not None


def test_images_of_one_lesion_count_once_everywhere() -> None:
    once, thrice = sample((40, 40, 40), 3), sample((40, 40, 40), 3, images=3)
    often = Lesions(*(np.concatenate([each, np.repeat(each[:2], 300, axis=0)]) for each in vars(once).values()))
    for mix in MIXES:
        found = [limits(each, mix, test=each) for each in (once, thrice, often)]
        assert len({(each.set_limit, each.min_confidence) for each in found}) == 1
        figures = [[(p.threshold, p.sensitivity["value"], p.fitted_on) for p in each.points] for each in found]
        for other in figures[1:]:
            for (threshold, share, count), (first, its_share, its_count) in zip(other, figures[0], strict=True):
                assert threshold == pytest.approx(first) and share == pytest.approx(its_share) and count == its_count


def test_an_answer_is_doubted_where_one_in_five_of_the_mix_is_less_sure_and_never_above_a_half() -> None:
    known = sample((100, 100, 100), 4)
    for mix in MIXES:
        sure = probabilities(known.logits, AS_IS, mix.of(CODES)).max(axis=1)
        below = mix_weights(known.classes, known.lesions, mix.of(CODES)) @ (sure < limits(known, mix).min_confidence)
        assert below <= 0.2 and limits(known, mix).min_confidence <= 0.5
    assert limits(known, MIXES[0]).max_set == 2


def test_weights_and_quantiles_in_numbers() -> None:
    classes, lesions = np.array([0, 0, 0, 1, 1]), np.array([5, 5, 6, 7, 8])
    weights = mix_weights(classes, lesions, (0.2, 0.8))
    np.testing.assert_allclose(weights, [0.05, 0.05, 0.1, 0.4, 0.4])
    assert mix_weights(classes[:0], lesions[:0], (0.2, 0.8)).shape == (0,)
    values = np.array([1.0, 2.0, 3.0, 4.0])
    quarter = np.full(4, 0.25)
    assert [weighted_quantile(values, quarter, share) for share in (0, 0.25, 0.26, 1)] == [1, 1, 2, 4]
    assert weighted_quantile(values, quarter, 1.01) == math.inf
    assert lesions_worth(quarter, np.arange(4)) == pytest.approx(4)
    assert lesions_worth(quarter, np.array([0, 0, 1, 1])) == pytest.approx(2)
    assert lesions_worth(np.array([0.97, 0.01, 0.01, 0.01]), np.arange(4)) == pytest.approx(1.06, abs=0.01)


def test_a_weighted_share_has_wilsons_interval_over_what_its_weights_are_worth() -> None:
    found = weighted_share([1, 1, 0, 1], np.full(4, 0.25), np.arange(4))
    assert (found["low"], found["high"]) == wilson_interval(0.75, 4)
    uneven = weighted_share([1, 1, 0, 1], np.array([0.7, 0.1, 0.1, 0.1]), np.arange(4))
    assert uneven["value"] == pytest.approx(0.9) and uneven["low"] is not None and uneven["low"] < 0.55
    assert weighted_share([], np.zeros(0), np.zeros(0, np.int64))["value"] is None
    drawn: Any = np.random.default_rng(0).random((4000, 120)) < np.repeat((0.95, 0.7), (20, 100))
    weights = np.repeat((0.5 / 20, 0.5 / 100), (20, 100))
    intervals = [weighted_share(hits, weights, np.arange(120)) for hits in drawn]
    held = np.mean([each["low"] <= 0.825 <= each["high"] for each in intervals])
    assert 0.95 <= held <= 0.999, "classes drawn apart vary less than Kish says, so it is on the safe side"


def test_measured_coverage_is_averaged_by_the_mix_and_given_by_class() -> None:
    inside = np.array([[True, False], [True, True], [False, True], [True, False]])
    known = Lesions(np.zeros((4, 2), np.float32), np.array([0, 0, 0, 1]), np.array([7, 8, 8, 9]))
    found = measure_sets(inside, known, ("A", "B"), (0.9, 0.1))
    assert found["per_class"]["A"]["coverage"]["value"] == pytest.approx(0.75)
    assert found["per_class"]["B"]["coverage"]["value"] == 0 and found["by_size"] == {"1": 3, "2": 1}
    assert found["coverage"]["value"] == pytest.approx(0.9 * 0.75)
    assert found["mean_size"] == pytest.approx(0.9 * 1.25 + 0.1) and found["n_lesions"] == 3
    none = measure_sets(np.zeros((0, 2), bool), no_lesions(2), ("A", "B"), (0.5, 0.5))
    assert none["coverage"] is None and none["by_size"] == {}


def test_aims_follow_what_is_known_of_the_classes() -> None:
    assert aims(CODES) == {"malignant": ("BCC", "MEL"), "melanoma": ("MEL",)}
    assert aims(("eczema", "psoriasis")) == {}
    assert aims(("BCC", "MEL")) == {"melanoma": ("MEL",)}, "where all is malignant there is nothing to tell apart"
    assert sides(sample((3, 4, 5), 0, images=2), CODES, ("BCC", "MEL")) == (7, 5)


def test_stored_lesions_are_read_as_they_were_written_and_damage_is_noticed() -> None:
    known = sample((3, 4, 5), 0, images=2)
    known = Lesions(known.logits, known.classes, known.lesions * 7)
    read = Lesions.read(known.arrays("test"), "test")
    np.testing.assert_array_equal(read.logits, known.logits)
    np.testing.assert_array_equal(read.lesions * 7, known.lesions)
    assert read.counts(3).tolist() == [3, 4, 5]
    arrays = known.arrays("test")
    with pytest.raises(KeyError):
        Lesions.read({**arrays, "x": arrays["test_logits"]}, "calibrate")
    for name, wrong in (
        ("logits", arrays["test_logits"][:-1]),
        ("logits", arrays["test_logits"] * np.float32(np.nan)),
        ("classes", arrays["test_classes"] + 3),
        ("lesions", arrays["test_lesions"] - 1),
    ):
        with pytest.raises(BundleError, match="do not fit together"):
            Lesions.read({**arrays, f"test_{name}": wrong}, "test")
