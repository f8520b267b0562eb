"""The shapes of the API answers, for `/openapi.json`. Tests compare the answers with them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Later models may add members."""

    model_config = ConfigDict(extra="allow")


class DiagnosisShape(Shape):
    code: str
    name: str


class ReasonShape(Shape):
    code: str
    text: str


class ModelNameShape(Shape):
    name: str
    version: str
    sha256: str


class ErrorShape(Shape):
    code: str
    message: str
    remedy: str


class PredictionShape(Shape):
    """The same object as `dermlens predict --json` prints."""

    schema_: Literal["dermlens/prediction/1"] = Field(alias="schema")
    image: str = Field(description="`image-1`, `image-2` ... in the order of the request; file names are ignored")
    status: Literal["ok", "uncertain", "rejected", "error"]
    diagnosis: DiagnosisShape | None
    probability: float | None = Field(ge=0, le=1)
    probabilities: dict[str, float]
    decision_rule: str
    model: ModelNameShape
    elapsed_ms: float
    error: ErrorShape | None
    reasons: list[ReasonShape] | None = None
    prediction_set: list[str] | None = None
    malignant_probability: float | None = None
    referral: dict[str, Any] | None = None
    novelty: dict[str, Any] | None = None
    quality: Any = None


class PredictionsShape(Shape):
    """One entry per image, in their order; one with `status` "error" says what to do."""

    predictions: list[PredictionShape]


class ExplanationShape(Shape):
    prediction: PredictionShape
    code: str
    logit: float
    width_px: int
    height_px: int
    relevance_png: str = Field(description="base64 of a grey PNG, 255 where the evidence for the class is largest")
    overlay_png: str = Field(description="base64 of a PNG, the image as the model sees it, with the heat map")


class ClassShape(DiagnosisShape):
    malignancy: Literal["malignant", "premalignant", "benign", "unknown"]
    icd10: str
    icd11: str
    plain: str


class ModelShape(ModelNameShape):
    software: str
    disclaimer: str
    scope: str
    classes: list[ClassShape]
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
    "schema": "dermlens/prediction/1",
    "image": "image-1",
    "status": "ok",
    "diagnosis": {"code": "MEL", "name": "melanoma"},
    "probability": 0.812345,
    "probabilities": {"BCC": 0.002, "BKL": 0.061, "MEL": 0.812345, "NV": 0.124655},
    "decision_rule": "prior_adjusted",
    "model": {"name": "default", "version": "1.0.0", "sha256": "0" * 64},
    "elapsed_ms": 9.1,
    "error": None,
}
