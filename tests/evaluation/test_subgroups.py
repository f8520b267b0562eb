"""Subgroups: every group on its own, none scored from too few lesions, and an honest word on dark skin."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dermlens.bundle.case_mix import equal_mix
from dermlens.data.records import Record
from dermlens.evaluation.subgroups import (
    MEASURES,
    groups_of,
    skin_tone_sentence,
    subgroups,
    tone_of,
    typology_angle,
)
from dermlens.evaluation.trust_sections import Answers
from dermlens.inference.prediction import Prediction


def record(**known: object) -> Record:
    return Record(path=Path("a.jpg"), image="a.jpg", diagnosis="NV", **known)  # type: ignore[arg-type]


def skin(rgb: tuple[int, int, int]) -> np.ndarray:
    """Skin of one colour with a dark lesion and dark corners."""
    y, x = np.indices((224, 224)) - 111.5
    image = np.where((np.hypot(x, y) < 60)[:, :, None], (60, 40, 35), rgb)
    return np.where((np.hypot(x, y) > 112)[:, :, None], 5, image).astype(np.uint8)


@pytest.mark.parametrize(
    ("rgb", "tone"), [((244, 208, 190), "very light"), ((200, 155, 125), "intermediate"), ((90, 56, 40), "dark")]
)
def test_the_angle_orders_skin_tones_and_lesion_and_corners_have_no_say(rgb: tuple[int, int, int], tone: str) -> None:
    assert tone_of(typology_angle(skin(rgb))) in {tone, *({"brown"} if tone == "dark" else ())}


def test_an_unknown_fact_is_no_group() -> None:
    assert groups_of(record(), None) == {}
    known = groups_of(record(age_approx=60.0, sex="female", dx_type="histo", fitzpatrick="2"), 30.0)
    assert known == {
        "age": "60 to 74",
        "sex": "female",
        "diagnosed by": "histo",
        "skin type (Fitzpatrick)": "2",
        "skin tone (estimated)": "intermediate",
    }


def scored(y: np.ndarray, decision: np.ndarray, lesions: np.ndarray, *, limits: bool = False) -> Answers:
    """Answers of a model of two classes, the second malignant; 0.9 sure of its decision.

    With limits an error is rejected, each set is (MEL) and MEL is referred.
    """
    probability = np.where(decision[:, None] == np.arange(2), 0.9, 0.1)
    point = SimpleNamespace(codes=("MEL",), threshold=0.5) if limits else None
    mix = equal_mix(("NV", "MEL"))
    judged_by = SimpleNamespace(set_limit=0.9 if limits else None, referral=point, shares=mix.of(("NV", "MEL")))
    predictions = [
        SimpleNamespace(status="rejected" if limits and wrong else "ok", prediction_set=("MEL",))
        for wrong in decision != y
    ]
    bundle: Any = SimpleNamespace(codes=("NV", "MEL"), limits=lambda mix: judged_by)
    answered = cast(list[Prediction], predictions)
    return Answers(bundle, mix, y, lesions, probability, decision, np.log(probability), answered)


def table(n_female: int) -> dict:
    n = 60 + n_female
    groups = [{"sex": "male"}] * 60 + [{"sex": "female"}] * n_female
    y = np.arange(n) % 2
    decision = y.copy()
    decision[:30] = 1 - decision[:30]
    return subgroups(groups, scored(y, decision, np.arange(n), limits=True))


def test_each_group_has_its_own_figures() -> None:
    found = table(40)["sex"]
    assert found["male"]["accuracy"]["value"] == 0.5 and found["female"]["accuracy"]["value"] == 1.0
    assert found["male"]["accuracy"]["low"] < 0.5 < found["male"]["accuracy"]["high"]
    assert (
        found["female"]["accuracy"]["low"] < 1.0
        and found["female"]["auc"]["value"] == 1.0
        and found["female"]["n_lesions"] == 40
    )


def test_every_measure_is_given_for_each_group() -> None:
    male, female = (table(140)["sex"][name] for name in ("male", "female"))
    assert set(MEASURES) <= set(male)
    assert male["referral_sensitivity"]["value"] == 0.5 and female["referral_specificity"]["value"] == 1.0
    assert male["coverage"]["value"] == 0.5 and male["rejected"]["value"] == 0.5 and male["accuracy_ok"]["value"] == 1.0
    assert female["sensitivity"]["MEL"]["value"] == 1.0 and male["brier"]["value"] > female["brier"]["value"]
    assert female["ece"]["value"] == pytest.approx(0.1), "0.9 sure and always right"
    assert male["ece"]["value"] is None and "100 lesions" in male["ece"]["reason"]


def test_what_a_bundle_does_not_say_is_null_with_its_reason() -> None:
    y = np.arange(60) % 2
    row = subgroups([{"sex": "male"}] * 30 + [{"sex": "female"}] * 30, scored(y, y, np.arange(60)))["sex"]["male"]
    assert row["auc"]["value"] == 1.0
    for name in ("referral_sensitivity", "coverage"):
        assert row[name]["value"] is None and "in this bundle" in row[name]["reason"]
    few = np.zeros(60, np.int64)
    few[::10] = 1
    row = subgroups([{"sex": "male"}] * 30 + [{"sex": "female"}] * 30, scored(few, few, np.arange(60)))["sex"]["male"]
    assert row["auc"]["value"] is None and set(row["sensitivity"]) == {"NV"}, "three melanomas say nothing"


def test_a_small_group_is_named_and_not_scored() -> None:
    row = table(10)["sex"]["female"]
    assert row["n"] == 10 and row["accuracy"]["value"] is None and "fewer than 20" in row["accuracy"]["reason"]


def test_many_images_of_few_lesions_are_a_small_group() -> None:
    y = np.zeros(100, np.int64)
    found = subgroups([{"sex": "male"}] * 99 + [{"sex": "female"}], scored(y, y, np.arange(100) % 5))
    assert found["sex"]["male"]["accuracy"]["value"] is None


def test_the_word_on_dark_skin_depends_on_what_was_scored() -> None:
    assert "not validated on dark skin" in skin_tone_sentence({})
    many = {"n": 30, "n_lesions": 30, "accuracy": {"value": 0.7}}
    estimated = skin_tone_sentence({"skin tone (estimated)": {"dark": many}})
    assert "no validation on dark skin" in estimated
    few = {"n": 3, "n_lesions": 3, "accuracy": {"value": None}}
    recorded = {"skin type (Fitzpatrick)": {"2": many, "5": few}, "skin tone (estimated)": {"dark": many}}
    assert "Fitzpatrick types are recorded; 3 lesions of types 5 and 6, too few" in skin_tone_sentence(recorded)
    assert "; 0 lesions of types 5 and 6" in skin_tone_sentence({"skin type (Fitzpatrick)": {"IV": many}})
    assert "scored on 30" in skin_tone_sentence({"skin type (Fitzpatrick)": {"type VI": many}})
    assert "recorded Fitzpatrick types 5 and 6" in skin_tone_sentence({"skin type (Fitzpatrick)": {"6": many}})
