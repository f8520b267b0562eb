"""The shapes of the API answers, for `/openapi.json`: each field with what it means and an example.

Tests compare the answers, and the table in `docs/answer.md`, with them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Later models may add members."""

    model_config = ConfigDict(extra="allow")


def _field(description: str, example: Any, **more: Any) -> Any:
    return Field(description=description, examples=[example], **more)


_SHARES = dict.fromkeys(("AK", "BCC", "BKL", "DF", "MEL", "NV", "SCC", "VASC"), 0.125)


class DiagnosisShape(Shape):
    code: str = _field("Code of the class.", "AK")
    name: str = _field("Name of the class.", "actinic keratosis")


class AdviceShape(Shape):
    code: Literal["retake", "see_clinician", "refer", "no_referral", "not_assessed"] = _field(
        "`retake`: nothing to judge, take another picture. `see_clinician`: the picture is unfamiliar, a person must "
        "look. `refer`: at or above the operating point, or a malignant first "
        "diagnosis. `no_referral`: below it. `not_assessed`: the model has no "
        "operating point.",
        "refer",
    )
    text: str = _field(
        "The same as a sentence.",
        "Refer to a specialist (malignant or premalignant: 77.8 %; the limit is 17.7 %).",
    )


class CaseMixShape(Shape):
    name: str = _field("`equal`, `training`, `own` (sent with the request), or a file that the server uses.", "equal")
    shares: dict[str, float] = _field("Share of each class beforehand; above 0, sum 1.", {"MEL": 0.5, "NV": 0.5})


class ReasonShape(Shape):
    code: str = _field("For programs: `low_confidence`, `unfamiliar`, `blurred` and so on.", "low_confidence")
    text: str = _field("For people.", "The most probable diagnosis has 38 %; below 42 % it is uncertain.")


class ReferralShape(Shape):
    advised: bool | None = _field(
        "Whether a person should see the lesion: true for `refer` and `see_clinician`, false for `no_referral`, else "
        "null.",
        True,
    )
    operating_point: str | None = _field("Name of the operating point; null where the model has none.", "malignant_95")
    threshold: float | None = _field(
        "Referral is advised from this `malignant_probability` on, and where the first diagnosis is malignant.",
        0.17671,
        ge=0,
        le=1,
    )
    sensitivity: float | None = _field("Of this threshold on unseen lesions, at this case mix.", 0.9839, ge=0, le=1)
    specificity: float | None = _field("Likewise.", 0.677, ge=0, le=1)


class NoveltyShape(Shape):
    score: float = _field("How unlike the training images the picture is.", 0.4821)
    threshold: float = _field("Above it the picture is unfamiliar, and rejected.", 1.8745)
    method: str = _field("How it is measured.", "mahalanobis_residual")


class QualityShape(Shape):
    sharpness: float = _field("0 (blurred) to 1.", 0.667)
    contrast: float = _field("Standard deviation of grey, 0 to 128.", 20.7195)
    brightness: float = _field("Mean grey, 0 to 255.", 173.9117)
    dark_share: float = _field("Share of dark pixels.", 0.0)
    bright_share: float = _field("Share of white pixels.", 0.0)
    lesion_share: float = _field("Rough size of the lesion, as a share of the picture.", 0.0972)
    lesion_border: float = _field("Share of the rim that is lesion; near 1 it reaches beyond the picture.", 0.0)
    skin_share: float = _field("Share of pixels that have a colour of skin.", 1.0)


class ModelNameShape(Shape):
    name: str = _field("Name of the model.", "default")
    version: str = _field("Its version.", "1.3.0")
    sha256: str = _field("SHA-256 of its `bundle.json`, which has the digests of its other files.", "62bf6a" + "0" * 58)


class ErrorShape(Shape):
    code: str = _field("For programs; `/problems` lists all of them.", "truncated")
    message: str = _field("What is wrong.", "The image file is incomplete.")
    remedy: str = _field("What to do.", "Copy or download it again.")


class PredictionShape(Shape):
    """The same object as `dermlens predict --json` prints."""

    schema_: Literal["dermlens/prediction/2"] = _field(
        "Name and version of this form.", "dermlens/prediction/2", alias="schema"
    )
    image: str = _field("`image-1`, `image-2` ... in the order of the request; file names are ignored.", "image-1")
    status: Literal["ok", "uncertain", "rejected", "error"] = _field(
        "`ok`; `uncertain`: it cannot decide; `rejected`: no lesion, unusable or unfamiliar; `error`: not read.",
        "uncertain",
    )
    why: str = _field(
        "One sentence: why it has this status.", "It cannot decide between actinic keratosis and basal cell carcinoma."
    )
    advice: AdviceShape | None = _field(
        "What to do; null for an error only.",
        {"code": "refer", "text": "Refer to a specialist (malignant or premalignant: 77.8 %; the limit is 17.7 %)."},
    )
    diagnosis: DiagnosisShape | None = _field(
        "The most probable class at this case mix, the first of `probabilities`; null for an error.",
        {"code": "AK", "name": "actinic keratosis"},
    )
    probability: float | None = _field("Of the diagnosis.", 0.381204, ge=0, le=1)
    probabilities: dict[str, float] = _field(
        "Of each class at this case mix, the largest first; not to be relied on where `status` is `rejected`.",
        {
            "AK": 0.381204,
            "BCC": 0.352131,
            "BKL": 0.146722,
            "DF": 0.048969,
            "MEL": 0.03,
            "NV": 0.02,
            "SCC": 0.015,
            "VASC": 0.005974,
        },
    )
    case_mix: CaseMixShape = _field(
        "How common each diagnosis is beforehand: what the probabilities are stated for.",
        {"name": "equal", "shares": _SHARES},
    )
    prediction_set: list[str] | None = _field(
        "The classes that cannot be ruled out: the first ones of `probabilities`; null where the model has no limits.",
        ["AK", "BCC"],
    )
    malignant_probability: float | None = _field(
        "Of all malignant and premalignant classes together; null for a rejected picture or where there are none.",
        0.778335,
        ge=0,
        le=1,
    )
    referral: ReferralShape | None = _field(
        "The operating point behind the advice; null for an error.",
        {
            "advised": True,
            "operating_point": "malignant_95",
            "threshold": 0.17671,
            "sensitivity": 0.9839,
            "specificity": 0.677,
        },
    )
    reasons: list[ReasonShape] = _field(
        "Every reason for the status, and every note on the picture.",
        [{"code": "low_confidence", "text": "The most probable diagnosis has 38 %; below 42 % it is uncertain."}],
    )
    novelty: NoveltyShape | None = _field(
        "How unlike the training images the picture is; null where the model cannot tell.",
        {"score": 0.4821, "threshold": 1.8745, "method": "mahalanobis_residual"},
    )
    quality: QualityShape | None = _field(
        "Focus, exposure and framing of the picture; null for an error.",
        {
            "sharpness": 0.667,
            "contrast": 20.7195,
            "brightness": 173.9117,
            "dark_share": 0.0,
            "bright_share": 0.0,
            "lesion_share": 0.0972,
            "lesion_border": 0.0,
            "skin_share": 1.0,
        },
    )
    model: ModelNameShape = _field(
        "Who answered.", {"name": "default", "version": "1.3.0", "sha256": "62bf6a" + "0" * 58}
    )
    elapsed_ms: float = _field("Milliseconds for this picture.", 23.9, ge=0)
    error: ErrorShape | None = _field("Why the picture could not be read; null otherwise.", None)


class PredictionsShape(Shape):
    """One entry per image, in their order; one with `status` "error" says what to do."""

    predictions: list[PredictionShape]


class ExplanationShape(Shape):
    prediction: PredictionShape
    code: str = _field("The class that is explained.", "MEL")
    logit: float = _field("Its logit.", 3.214)
    width_px: int = _field("Of both pictures.", 224)
    height_px: int = _field("Likewise.", 224)
    relevance_png: str = Field(description="base64 of a grey PNG, 255 where the evidence for the class is largest")
    overlay_png: str = Field(description="base64 of a PNG, the image as the model sees it, with the heat map")


class ClassShape(DiagnosisShape):
    malignancy: Literal["malignant", "premalignant", "benign", "unknown"]
    icd10: str
    icd11: str
    plain: str


class FigureShape(Shape):
    """A figure with its 95 % interval; null where it could not be measured."""

    value: float | None
    low: float | None
    high: float | None


class OperatingPointShape(Shape):
    name: str = _field("What `referral.operating_point` names.", "malignant_95")
    aim: str = _field("Which kind of lesion it looks for.", "malignant")
    codes: list[str] = _field("The classes whose probabilities are added up.", ["AK", "BCC", "MEL", "SCC"])
    aimed_at: float = _field("The sensitivity that it was fitted for.", 0.95)
    threshold: float = _field("Referral is advised at or above it.", 0.17671)
    fitted_on: dict[str, int] = _field(
        "Lesions of that kind, and others.", {"positive_lesions": 158, "other_lesions": 661}
    )
    sensitivity: FigureShape
    specificity: FigureShape
    referred: FigureShape


class ModelShape(ModelNameShape):
    software: str
    disclaimer: str
    scope: str
    classes: list[ClassShape]
    case_mix: CaseMixShape = Field(description="Of answers to requests that name none.")
    training_mix: CaseMixShape = Field(description="How common each class was in the training data.")
    operating_points: list[OperatingPointShape] = Field(description="At `case_mix`.")
    prediction_set_level: float | None = _field("Share of lesions whose class `prediction_set` holds.", 0.9)
    limits: dict[str, int]
    metrics: dict[str, Any]
    card: str


class ProblemShape(Shape):
    """RFC 9457, with `code` for programs and `remedy` for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    remedy: str


class HealthShape(Shape):
    status: Literal["ok", "draining"]


PREDICTION_EXAMPLE: dict[str, Any] = {
    field.alias or name: (field.examples or [None])[0] for name, field in PredictionShape.model_fields.items()
}
