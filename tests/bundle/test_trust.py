"""The status of an answer: each reason on its own, the gravest wins."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import TRUST_FILE
from dermlens.bundle.novelty import Novelty
from dermlens.bundle.quality import QualityLimits
from dermlens.bundle.trust import Trust, grave_codes
from dermlens.errors import BundleError
from dermlens.reporting import terminal
from dermlens.reporting.page import write_page

LAX = QualityLimits(0, 0, 0, 1, 1, 0, 1)


def facts(**changes: Any) -> dict[str, Any]:
    """Trust facts for the tiny model that find nothing wrong with plain colours."""
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    return tiny.NOT_FITTED.as_dict() | {
        "prediction_sets": {"level": 0.9, "limits": [2.0, 2.0, 2.0], "max_size": 2},
        "min_confidence": 0.3,
        "operating_points": [
            {
                "name": "malignant_95",
                "aim": "malignant",
                "codes": ["RED"],
                "aimed_at": 0.95,
                "threshold": 0.5,
                "fitted_on": {"positive_lesions": 30, "other_lesions": 30},
                "sensitivity": {"value": 0.94, "low": 0.9, "high": 0.97},
                "specificity": {"value": 0.6, "low": 0.5, "high": 0.7},
                "referred": share,
                "net_benefit": share,
            }
        ],
        "referral": "malignant_95",
        "novelty": None,
        "quality": LAX.as_dict(),
        **changes,
    }


def with_trust(folder: Path, modality: str = "dermoscopy", **changes: Any) -> Predictor:
    tiny.write(folder, modality=modality, trust=facts(**changes))
    return Predictor(folder)


def novelty(threshold: float) -> Novelty:
    """Known is what points along (1, 1, 1): grey."""
    grey = np.ones(3, np.float32) / np.sqrt(3)
    return Novelty(grey, np.eye(3, dtype=np.float32)[:1], np.eye(1), np.zeros((1, 1)), (1.0, 0.01), threshold, 0.95)


def test_a_sure_answer_is_ok_and_has_all_fields(tmp_path: Path) -> None:
    answer = with_trust(tmp_path / "b").predict(tiny.colour("RED"))
    assert answer.status == "ok" and answer.reasons == () and answer.prediction_set == ("RED",)
    assert answer.referral == {
        "advised": True,
        "operating_point": "malignant_95",
        "threshold": 0.5,
        "sensitivity": 0.94,
        "specificity": 0.6,
    }
    assert answer.quality is not None and answer.novelty is None
    json.dumps(answer.as_dict(), allow_nan=False)


def test_each_doubt_has_its_reason(tmp_path: Path) -> None:
    wide = with_trust(tmp_path / "s", prediction_sets={"level": 0.9, "limits": [None] * 3, "max_size": 2})
    answer = wide.predict(tiny.colour("GREEN"))
    assert answer.status == "uncertain" and [r.code for r in answer.reasons] == ["many_diagnoses_possible"]
    assert answer.prediction_set is not None and answer.prediction_set[0] == answer.top(1)[0][0]
    assert len(answer.prediction_set) == 3
    unsure = with_trust(tmp_path / "c", min_confidence=1.0).predict(tiny.colour("GREEN"))
    assert unsure.status == "uncertain" and [r.code for r in unsure.reasons] == ["low_confidence"]


@pytest.mark.parametrize(("modality", "code"), [("dermoscopy", "not_dermoscopic"), ("unknown", "unlike_training")])
def test_a_novel_image_is_rejected_with_its_probabilities(tmp_path: Path, modality: str, code: str) -> None:
    folder = tiny.write(tmp_path / "b", modality=modality)
    strange = novelty(2.0)
    tiny.add(folder, {TRUST_FILE: strange.arrays()}, facts(novelty=strange.as_dict()))
    predictor = Predictor(folder)
    grey = predictor.predict(np.full((28, 28, 3), 128, np.uint8))
    assert grey.novelty is not None and grey.novelty["score"] < grey.novelty["threshold"] and grey.status != "rejected"
    red = predictor.predict(tiny.colour("RED"))
    assert red.status == "rejected" and red.reasons[0].code == code
    assert red.diagnosis_code == "RED" and sum(red.probabilities.values()) == pytest.approx(1)


def test_an_unusable_picture_is_rejected(tmp_path: Path) -> None:
    answer = with_trust(tmp_path / "b", quality=QualityLimits().as_dict()).predict(tiny.colour("RED"))
    assert answer.status == "rejected" and answer.reasons[0].code == "blank"
    told = json.loads(json.dumps(answer.as_dict()))
    assert told["referral"] is None and told["malignant_probability"] is None, "no advice from what means nothing"


def test_a_bundle_whose_limits_are_not_fitted_says_ok_and_no_more(tmp_path: Path) -> None:
    answer = Predictor(tiny.write(tmp_path / "b")).predict(tiny.colour("RED")).as_dict()
    assert answer["status"] == "ok" and answer["reasons"] == [] and answer["quality"]
    for field in ("prediction_set", "malignant_probability", "referral", "novelty"):
        assert answer[field] is None


def test_an_unreadable_image_gives_its_reason_too(tmp_path: Path) -> None:
    answer = with_trust(tmp_path / "b").predict(b"").as_dict()
    assert answer["status"] == "error" and answer["reasons"][0]["code"] == answer["error"]["code"] == "empty_file"


def test_damaged_facts_are_noticed_on_load(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="damaged"):
        with_trust(tmp_path / "a", prediction_sets={"level": 2, "limits": [1, 1, 1], "max_size": 1})
    with pytest.raises(BundleError, match="damaged"):
        with_trust(tmp_path / "b", novelty=novelty(1.0).as_dict())


def test_malignant_probability_adds_up_what_is_grave() -> None:
    assert grave_codes(("AK", "NV", "MEL", "eczema")) == ("AK", "MEL")
    assert Trust(tiny.NOT_FITTED, None, ("x", "y")).operating_point is None


def test_people_read_why_and_a_rejected_image_names_no_diagnosis(tmp_path: Path) -> None:
    predictor = with_trust(tmp_path / "b", quality=QualityLimits().as_dict())
    image = tmp_path / "plain.png"
    import cv2

    cv2.imwrite(str(image), tiny.colour("RED")[:, :, ::-1])
    rejected = predictor.predict(image)
    unsure = with_trust(tmp_path / "c", min_confidence=1.0)
    told = io.StringIO()
    terminal.show([rejected], predictor.bundle, top=3, console=Console(file=told, width=160))
    assert "rejected" in told.getvalue() and "nearly one colour" in told.getvalue() and "100 %" not in told.getvalue()
    assert "have the lesion seen: " in told.getvalue(), "no advice would read as: nothing to fear"
    told = io.StringIO()
    terminal.show([unsure.predict(image)], unsure.bundle, top=3, console=Console(file=told, width=160))
    assert "Low confidence (" in told.getvalue() and "Refer to a specialist: plain.png" in told.getvalue()
    write_page([rejected, unsure.predict(image)], predictor.bundle, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "I can’t tell" in page and "Cannot be ruled out: " in page and "Refer to a specialist." in page
