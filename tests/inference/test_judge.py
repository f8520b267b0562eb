"""judge.py: an answer never contradicts itself, and advice is never missing."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tiny
from dermlens.bundle.case_mix import equal_mix, make_mix
from dermlens.bundle.limits import Lesions, Limits, SetRule, fit_limits, no_lesions
from dermlens.bundle.novelty import Novelty
from dermlens.bundle.probabilities import Calibration, probabilities
from dermlens.bundle.quality import Quality, QualityLimits
from dermlens.bundle.trust import FAR, STRANGE, Trust, TrustFacts
from dermlens.inference.judge import ADVICE, Judgement, Scope, judge

CODES = ("BKL", "MEL", "NV")
GOOD = Quality(0.8, 40.0, 150.0, 0.0, 0.0, 0.2, 0.0, 1.0)
CALIBRATION = Calibration(1.0, (1 / 3,) * 3)
GREY = np.ones(3, np.float32) / np.sqrt(3)
NOVELTY = Novelty(GREY, np.eye(3, dtype=np.float32)[:1], np.eye(1), np.zeros((1, 1)), (1.0, 1.0), 1.0, 0.95)
STRICT = Trust(TrustFacts(None, None, 0.95, None, QualityLimits(), None), NOVELTY)


def limits(known: Lesions | None = None, shares: tuple[float, ...] = (1, 1, 1), method: str = "probability") -> Limits:
    roles = {"calibrate": known or tiny.known(), "test": tiny.known(seed=1)}
    mix = make_mix("ours", dict(zip(CODES, shares, strict=True)), CODES)
    rule = SetRule(method)  # type: ignore[arg-type]
    return fit_limits(mix, CODES, CALIBRATION, roles, rule=rule, sensitivity=0.95)


def answer(
    probability: list[float], *, novelty: float | None = 0.5, quality: Quality = GOOD, at: Limits | None = None
) -> Judgement:
    return judge(Scope(CODES, STRICT, "dermoscopy"), at or limits(), np.array(probability), novelty, quality)


@settings(max_examples=200, deadline=None)
@given(
    logits=arrays(np.float32, (3,), elements=st.floats(-30, 30, width=32)),
    shares=st.tuples(*[st.floats(0.001, 1)] * 3),
    method=st.sampled_from(["probability", "cumulative"]),
    novelty=st.floats(0, 10) | st.none(),
    skin=st.floats(0, 1),
    sharpness=st.floats(0, 1),
    few=st.booleans(),
)
def test_no_answer_contradicts_itself(
    logits: np.ndarray,
    shares: tuple[float, ...],
    method: str,
    novelty: float | None,
    skin: float,
    sharpness: float,
    few: bool,
) -> None:
    """The diagnosis is the first of the order and of the set, the set a beginning of it, the advice never missing."""
    at = limits(tiny.known(30) if few else None, shares, method)
    probability = probabilities(logits[None], CALIBRATION, at.shares)[0]
    picture = replace(GOOD, skin_share=skin, sharpness=sharpness)
    found = answer(probability.tolist(), novelty=novelty, quality=picture, at=at)
    order = [CODES[c] for c in np.argsort(-probability, kind="stable")]
    assert found["prediction_set"] == tuple(order[: len(found["prediction_set"] or ())]) != ()
    assert found["advice"].code in ADVICE and found["advice"].text and found["why"]
    assert found["referral"]["advised"] == {"refer": True, "see_clinician": True, "no_referral": False}.get(
        found["advice"].code
    )
    assert (found["status"] == "rejected") == (found["advice"].code in ("retake", "see_clinician"))
    if found["status"] == "uncertain":
        named = [name for name in ("benign keratosis", "melanoma", "nevus") if name in found["why"]]
        assert 2 <= len(named) <= 3
    share = float(probability[CODES.index("MEL")])
    if found["advice"].code in ("refer", "no_referral") and at.referral is not None:
        assert (found["advice"].code == "refer") == (share >= at.referral.threshold or order[0] == "MEL")


def test_a_malignant_first_diagnosis_is_always_referred() -> None:
    point = limits().referral
    assert point is not None
    high = replace(limits(), referral=msgspec.structs.replace(point, threshold=0.9))
    found = answer([0.3, 0.4, 0.3], at=high)
    assert found["advice"].code == "refer" and "first diagnosis" in found["advice"].text
    assert answer([0.4, 0.3, 0.3], at=high)["advice"].code == "no_referral"


def test_advice_is_the_first_that_holds() -> None:
    sure = [0.02, 0.96, 0.02]
    assert answer(sure)["advice"].code == "refer"
    assert answer([0.02, 0.0001, 0.9799])["advice"].code == "no_referral"
    assert answer(sure, novelty=1.5)["advice"].code == "see_clinician"
    assert answer(sure, novelty=STRANGE + 0.1, quality=replace(GOOD, skin_share=0.0))["advice"].code == "retake"
    assert answer(sure, novelty=FAR + 0.1)["advice"].code == "retake"
    blurred = replace(GOOD, sharpness=0.0)
    assert answer(sure, novelty=1.5, quality=blurred)["advice"].code == "retake", "before unfamiliar"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"contrast": 0.0}, "blank"),
        ({"sharpness": 0.0}, "blurred"),
        ({"brightness": 5.0}, "too_dark"),
        ({"bright_share": 0.9}, "overexposed"),
    ],
)
def test_an_unusable_picture_is_to_be_taken_again_or_seen(change: dict[str, float], code: str) -> None:
    found = answer([0.1, 0.8, 0.1], quality=replace(GOOD, **change))
    assert found["status"] == "rejected" and [r.code for r in found["reasons"]] == [code]
    assert found["advice"].text == "Take the picture again, or have the lesion seen."
    assert found["why"] == found["reasons"][0].text and found["malignant_probability"] is None


def test_no_lesion_says_what_to_photograph() -> None:
    found = answer([0.1, 0.8, 0.1], novelty=FAR + 1)
    assert [r.code for r in found["reasons"]] == ["no_lesion"]
    assert "one skin lesion through a dermatoscope" in found["advice"].text


def test_an_unfamiliar_picture_says_nothing_about_the_lesion() -> None:
    found = answer([0.1, 0.1, 0.8], novelty=1.5)
    assert [r.code for r in found["reasons"]] == ["unfamiliar"] and found["referral"]["advised"] is True
    assert "may be harmless or dangerous" in found["advice"].text


def test_framing_adds_a_sentence_and_changes_nothing_else() -> None:
    cut = replace(GOOD, lesion_border=1.0, lesion_share=0.0)
    for probability in ([0.02, 0.96, 0.02], [0.02, 0.0001, 0.9799]):
        plain, framed = answer(probability), answer(probability, quality=cut)
        assert framed["advice"].code == plain["advice"].code and framed["status"] == plain["status"]
        assert framed["advice"].text.startswith(plain["advice"].text) and "beyond the picture" in framed["advice"].text
        assert [r.code for r in framed["reasons"]] == ["lesion_too_small", "lesion_cut_off"]


def test_no_referral_names_a_malignancy_that_cannot_be_ruled_out() -> None:
    wide = replace(limits(), set_limit=1.0)
    found = answer([0.02, 0.0001, 0.9799], at=wide)
    assert found["advice"].code == "no_referral" and "MEL" in (found["prediction_set"] or ())
    assert "melanoma cannot be ruled out: have the lesion seen if it is new" in found["advice"].text
    narrow = answer([0.02, 0.0001, 0.9799], at=replace(limits(), set_limit=0.0))
    assert "ruled out" not in narrow["advice"].text and "sensitivity is" in narrow["advice"].text


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (("BKL", "DF", "NV"), "the model has no malignant class"),
        (("BCC", "MEL", "SCC"), "every class of the model is malignant"),
        (("BKL", "MEL", "NV"), "fewer than 20 malignant or 20 other lesions"),
    ],
)
def test_without_an_operating_point_it_says_why_it_does_not_advise(codes: tuple[str, ...], says: str) -> None:
    roles = {"calibrate": tiny.known(30), "test": no_lesions(3)}
    at = fit_limits(equal_mix(codes), codes, CALIBRATION, roles, rule=SetRule("probability"), sensitivity=0.95)
    found = judge(Scope(codes, STRICT, "unknown"), at, np.array([0.8, 0.1, 0.1]), None, GOOD)
    assert found["advice"].code == "not_assessed" and says in found["advice"].text
    assert found["referral"] == dict.fromkeys(("advised", "operating_point", "threshold", "sensitivity", "specificity"))


def test_uncertain_names_two_or_three_in_order() -> None:
    found = answer([0.31, 0.33, 0.36], at=replace(limits(), min_confidence=0.5, set_limit=1.0))
    assert found["status"] == "uncertain"
    assert found["why"] == "It cannot decide between melanocytic nevus, melanoma and benign keratosis."
    two = answer([0.02, 0.48, 0.5], at=replace(limits(), min_confidence=0.6, set_limit=0.55))
    assert two["why"] == "It cannot decide between melanocytic nevus and melanoma."
