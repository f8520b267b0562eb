"""What a bundle knows of its limits: stored, loaded, and at work in an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import TRUST_FILE, load_bundle
from dermlens.bundle.limits import grave_codes
from dermlens.bundle.novelty import Novelty
from dermlens.bundle.quality import Quality, QualityLimits
from dermlens.bundle.trust import FAR, LITTLE_SKIN, STRANGE, Trust, TrustFacts
from dermlens.errors import BundleError, UsageError

LAX = QualityLimits(0, 0, 0, 1, 1, 0, 1)
SETS = {"prediction_sets": {"method": "probability"}}
NAMES = tiny.named("NV", "BKL", "MEL")  # blue, green, red


def predictor(folder: Path, n: int = 90, **changes: Any) -> Predictor:
    """A tiny model that calls red a melanoma, with limits from made-up lesions."""
    trust = tiny.NOT_FITTED.as_dict() | SETS | {"quality": LAX.as_dict()} | changes.pop("trust", {})
    known = tiny.known(n), tiny.known(n, seed=1)
    return Predictor(tiny.write(folder, calibrate=known[0], test=known[1], trust=trust, **NAMES, **changes))


def novelty(threshold: float) -> Novelty:
    """Known is what points along (1, 1, 1): grey."""
    grey = np.ones(3, np.float32) / np.sqrt(3)
    return Novelty(grey, np.eye(3, dtype=np.float32)[:1], np.eye(1), np.zeros((1, 1)), (1.0, 0.01), threshold, 0.95)


def test_a_sure_answer_has_all_fields(tmp_path: Path) -> None:
    model = predictor(tmp_path / "b")
    answer = model.predict(tiny.colour("RED"))
    point = model.bundle.limits(model.case_mix).referral
    assert point is not None and point.sensitivity["value"] is not None and point.sensitivity["low"] is not None
    assert answer.status == "ok" and answer.diagnosis_code == "MEL" and answer.advice is not None
    assert answer.advice.code == "refer" and answer.advised
    assert answer.referral == {
        "advised": True,
        "operating_point": "malignant_95",
        "threshold": round(point.threshold, 6),
        "sensitivity": round(point.sensitivity["value"], 4),
        "specificity": round(point.specificity["value"] or 0, 4),
    }
    told = answer.as_dict()
    assert list(told["probabilities"]) == sorted(told["probabilities"], key=lambda code: -told["probabilities"][code])
    assert told["prediction_set"] == list(told["probabilities"])[: len(told["prediction_set"])]
    assert told["case_mix"]["name"] == "equal" and told["schema"] == "dermlens/prediction/2"
    json.dumps(told, allow_nan=False)


def test_another_case_mix_is_bayes_rule_and_moves_everything_together(tmp_path: Path) -> None:
    model = predictor(tmp_path / "b")
    image = (tiny.colour("RED") // 2 + tiny.colour("GREEN") // 2).astype(np.uint8)
    equal = model.predict(image)
    (tmp_path / "clinic.csv").write_text("MEL,0.001\nNV,0.001\nBKL,0.998\n")
    ours = Predictor(model.bundle.folder, case_mix=str(tmp_path / "clinic.csv")).predict(image)
    weighed = {code: share * {"MEL": 1, "NV": 1, "BKL": 998}[code] for code, share in equal.probabilities.items()}
    total = sum(weighed.values())
    assert ours.probabilities == pytest.approx({code: share / total for code, share in weighed.items()})
    assert ours.diagnosis_code == next(iter(ours.probabilities)) == "BKL" != equal.diagnosis_code
    again = model.at_mix(equal, str(tmp_path / "clinic.csv"))
    assert again.as_dict() | {"elapsed_ms": 0} == ours.as_dict() | {"elapsed_ms": 0}
    assert model.at_mix(again, "equal").as_dict() == equal.as_dict()
    with pytest.raises(UsageError, match="case mix"):
        model.at_mix(equal, "nowhere")


def test_an_error_is_stated_at_the_mix_too_and_has_no_advice(tmp_path: Path) -> None:
    model = predictor(tmp_path / "b")
    error = model.at_mix(model.predict(b""), "training")
    told = error.as_dict()
    assert told["status"] == "error" and told["reasons"][0]["code"] == told["error"]["code"] == "empty_file"
    assert told["advice"] is None and told["why"] == told["error"]["message"]
    assert told["case_mix"]["name"] == "training"


def test_the_models_own_mix_is_the_default(tmp_path: Path) -> None:
    shares = {"NV": 0.2, "BKL": 0.3, "MEL": 0.5}
    model = predictor(tmp_path / "b", case_mix={"name": "training", "shares": shares})
    assert model.predict(tiny.colour("RED")).case_mix.shares == shares
    assert (
        model.case_mix.name == "training" and Predictor(model.bundle.folder, case_mix="equal").case_mix.name == "equal"
    )


def test_a_novel_image_is_rejected_with_its_probabilities(tmp_path: Path) -> None:
    strange = novelty(2.0)
    model = predictor(tmp_path / "b")
    trust = model.bundle.card.trust.as_dict() | {"novelty": strange.as_dict()}
    model = Predictor(tiny.add(model.bundle.folder, {TRUST_FILE: strange.arrays()}, trust))
    grey = model.predict(np.full((28, 28, 3), 128, np.uint8))
    assert grey.novelty is not None and grey.novelty["score"] < grey.novelty["threshold"] and grey.status != "rejected"
    red = model.predict(tiny.colour("RED"))
    assert red.status == "rejected" and red.advice is not None and red.advice.code in ("retake", "see_clinician")
    assert red.diagnosis_code == "MEL" and sum(red.probabilities.values()) == pytest.approx(1)


def _look(skin_share: float) -> Quality:
    return Quality(0.8, 40.0, 150.0, 0.0, 0.0, 0.2, 0.0, skin_share)


def test_far_or_without_skin_is_no_lesion_and_near_with_skin_is_unfamiliar() -> None:
    trust = Trust(TrustFacts(None, None, 0.95, None, LAX, None), novelty(2.0))
    assert trust.familiarity(2.0, _look(skin_share=0.0)) == "familiar"
    assert trust.familiarity(2.0 * STRANGE - 0.1, _look(skin_share=0.0)) == "unfamiliar"
    assert trust.familiarity(2.0 * STRANGE + 0.1, _look(skin_share=LITTLE_SKIN)) == "unfamiliar"
    assert trust.familiarity(2.0 * STRANGE + 0.1, _look(skin_share=LITTLE_SKIN - 0.01)) == "no_lesion"
    assert trust.familiarity(2.0 * FAR + 0.1, _look(skin_share=1.0)) == "no_lesion"
    assert trust.familiarity(None, _look(0.0)) == "familiar"


def test_an_unusable_picture_is_rejected(tmp_path: Path) -> None:
    told = predictor(tmp_path / "b", trust={"quality": QualityLimits().as_dict()}).predict(tiny.colour("RED")).as_dict()
    assert told["status"] == "rejected" and told["reasons"][0]["code"] == "blank"
    assert told["advice"]["code"] == "retake" and told["malignant_probability"] is None
    assert told["referral"]["advised"] is None


def test_a_bundle_whose_limits_are_not_fitted_answers_and_says_why_it_does_not_advise(tmp_path: Path) -> None:
    answer = Predictor(tiny.write(tmp_path / "b")).predict(tiny.colour("RED")).as_dict()
    assert answer["status"] == "ok" and answer["reasons"] == [] and answer["quality"]
    assert answer["advice"]["code"] == "not_assessed" and answer["referral"]["advised"] is None
    for field in ("prediction_set", "malignant_probability", "novelty"):
        assert answer[field] is None


def test_damaged_facts_are_noticed_on_load(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="damaged"):
        predictor(tmp_path / "a", trust={"prediction_sets": {"method": "magic"}})
    with pytest.raises(BundleError, match="damaged"):
        predictor(tmp_path / "b", trust={"novelty": novelty(1.0).as_dict()})
    with pytest.raises(BundleError, match="case mix"):
        predictor(tmp_path / "c", case_mix={"name": "equal", "shares": {"NV": 0.5, "BKL": 0.5}})


@pytest.mark.parametrize("change", ["classes", "lesions", "logits", "missing", "width"])
def test_damaged_lesions_are_noticed_on_load(tmp_path: Path, change: str) -> None:
    arrays = tiny.lesions(tiny.known(), tiny.known(seed=1))
    if change == "classes":
        arrays["calibrate_classes"] = arrays["calibrate_classes"] + 3
    elif change == "lesions":
        arrays["test_lesions"] = arrays["test_lesions"][:-1]
    elif change == "logits":
        arrays["test_logits"] = arrays["test_logits"] * np.nan
    elif change == "width":
        arrays = {name: a[:, :2] if a.ndim == 2 else np.minimum(a, 1) for name, a in arrays.items()}
    else:
        del arrays["test_logits"]
    folder = tiny.write(tmp_path / "b")
    with pytest.raises(BundleError, match=r"lesions\.npz") as caught:
        tiny.add(folder, {"lesions.npz": arrays})
    assert caught.value.code == "bundle_damaged" and load_bundle(folder)


def test_malignant_probability_adds_up_what_is_grave() -> None:
    assert grave_codes(("AK", "NV", "MEL", "eczema")) == ("AK", "MEL")
