"""The routes under /api/v1, and what describes them in /openapi.json.

Explanations for the API: which places spoke for a class, as pictures.

What `/api/v1/model` says: the model, its classes in plain words, how good it is, and what a client may send.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from dermlens import __version__
from dermlens.bundle import card_text
from dermlens.bundle.bundle import Bundle
from dermlens.diagnoses import DIAGNOSES, DISCLAIMER
from dermlens.errors import ImageError
from dermlens.inference.explain import Explanation
from dermlens.inference.prediction import Prediction
from dermlens.inference.predictor import Predictor
from dermlens.serving.batching import Batcher
from dermlens.serving.envelope import Metrics
from dermlens.serving.problems import MEDIA_TYPE, Problem, of_image
from dermlens.serving.schemas import (
    PREDICTION_EXAMPLE,
    PROBLEM_EXAMPLE,
    ExplanationShape,
    ModelShape,
    PredictionShape,
    PredictionsShape,
    ProblemShape,
)
from dermlens.serving.settings import Settings
from dermlens.serving.uploads import Upload, read_upload

NO_STORE = {"Cache-Control": "no-store"}
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff", "application/octet-stream")


@dataclass(frozen=True)
class Service:
    """What the routes work with."""

    predictor: Predictor
    batcher: Batcher
    settings: Settings
    metrics: Metrics

    async def predict(self, images: list[bytes]) -> list[Prediction]:
        """Answer for images, named `image-1` and so on, within the time allowed."""
        names = [f"image-{n}" for n in range(1, len(images) + 1)]
        answers = await self._in_time(self.batcher.predict(images, names))
        for answer in answers:
            self.metrics.images(answer.status)
        return list(answers)

    async def explain(self, image: bytes, code: str | None) -> Heatmap:
        made = self.batcher.call(lambda: explain(self.predictor, image, code, "image-1"), image)
        found: Heatmap = await self._in_time(made)
        return found

    async def _in_time(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                return await work
        except TimeoutError:
            raise Problem(
                "timeout", f"No answer within {self.settings.request_timeout_s:g} seconds.", retry_after_s=2
            ) from None


def api_routes(service: Service) -> APIRouter:
    """Return the routes under /api/v1."""
    router = APIRouter(prefix="/api/v1")
    facts = json_response(model_facts(service.predictor.bundle, service.settings))

    @router.post(
        "/predictions",
        summary="Say what each image shows",
        responses={
            200: _answers("One image: its prediction. Several: all of them.", PredictionShape, PredictionsShape),
            **_problems(400, 401, 403, 408, 413, 415, 422, 429, 503),
        },
        openapi_extra={"requestBody": _request_body()},
    )
    async def predictions(request: Request) -> Response:
        upload = await _upload(request, service.settings)
        answers = await service.predict(upload.images)
        if len(answers) > 1:
            return json_response({"predictions": [answer.as_dict() for answer in answers]})
        if answers[0].error is not None:
            raise of_image(answers[0].error)
        return json_response(answers[0].as_dict())

    @router.post(
        "/explanations",
        summary="Show which places of one image spoke for a class",
        responses={
            200: {
                "description": "A PNG, or with `Accept: application/json` everything.",
                "content": {
                    "image/png": {"schema": {"type": "string", "format": "binary"}},
                    "application/json": {"schema": _ref(ExplanationShape)},
                },
                "model": ExplanationShape,
            },
            **_problems(400, 401, 403, 408, 413, 415, 422, 429, 503),
        },
        openapi_extra={"requestBody": _request_body("code", several=False)},
    )
    async def explanations(
        request: Request,
        code: Annotated[str | None, Query(max_length=64, description="The class; the diagnosis when left out.")] = None,
        picture: Annotated[Literal["overlay", "relevance"], Query(description="Which PNG.")] = "overlay",
        alpha: Annotated[float, Query(ge=0, le=1, description="How strongly the overlay is coloured.")] = 0.55,
    ) -> Response:
        upload = await _upload(request, service.settings)
        if len(upload.images) > 1:
            raise Problem(
                "too_many_images", f"The request holds {len(upload.images)} images. One is explained at a time."
            )
        found = await service.explain(upload.images[0], code or upload.fields.get("code") or None)
        if "application/json" in request.headers.get("accept", ""):
            return json_response(found.as_dict(alpha))
        png = found.overlay_png(alpha) if picture == "overlay" else found.relevance_png()
        return Response(png, headers=NO_STORE, media_type="image/png")

    @router.get(
        "/model",
        summary="The model, its classes, its card and the limits",
        responses={200: {"model": ModelShape, "description": "The model."}, **_problems(401, 429)},
    )
    async def model() -> Response:
        return facts

    return router


def json_response(value: Any) -> Response:
    """Return JSON that no cache keeps."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return Response(body, headers=NO_STORE, media_type="application/json")


async def _upload(request: Request, settings: Settings) -> Upload:
    body = await request.body()
    return read_upload(body, request.headers.get("content-type", ""), max_images=settings.max_images)


def _request_body(*fields: str, several: bool = True) -> dict[str, Any]:
    """Describe an upload: a form, or one raw image."""
    binary = {"type": "string", "format": "binary", "description": "the bytes of an image file"}
    image = {"type": "array", "items": binary, "minItems": 1} if several else binary
    properties = {"image": image, **{name: {"type": "string"} for name in fields}}
    form = {
        "schema": {"type": "object", "required": ["image"], "properties": properties, "additionalProperties": False}
    }
    raw = {name: {"schema": {"type": "string", "format": "binary"}} for name in IMAGE_TYPES}
    return {"required": True, "content": {"multipart/form-data": form, **raw}}


def _ref(shape: type[Any]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}


def _answers(description: str, one: type[Any], many: type[Any]) -> dict[str, Any]:
    examples = {
        "one": {"summary": "One image", "value": PREDICTION_EXAMPLE},
        "several": {"summary": "Several images", "value": {"predictions": [PREDICTION_EXAMPLE]}},
    }
    content = {"application/json": {"examples": examples}}
    return {"description": description, "model": one | many, "content": content}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problems that a route may answer with."""
    content = {MEDIA_TYPE: {"schema": _ref(ProblemShape), "example": PROBLEM_EXAMPLE}}
    return {status: {"description": "See /problems.", "content": content} for status in statuses}


@dataclass(frozen=True)
class Heatmap:
    """An explanation as the API sends it."""

    explanation: Explanation

    def overlay_png(self, alpha: float) -> bytes:
        """Return the image with the relevance over it, `alpha` 0..1 where it is largest, as a PNG."""
        return self.explanation.as_png(alpha)

    def relevance_png(self) -> bytes:
        """Return the relevance as a grey PNG, 255 where it is largest."""
        _, code = cv2.imencode(".png", np.round(self.explanation.relevance * 255).astype(np.uint8))
        return bytes(code.tobytes())

    def as_dict(self, alpha: float) -> dict[str, Any]:
        """Return all of it for JSON; pictures in base64."""
        found = self.explanation
        return {
            "prediction": found.prediction.as_dict(),
            "code": found.code,
            "logit": round(found.logit, 6),
            "width_px": found.relevance.shape[1],
            "height_px": found.relevance.shape[0],
            "relevance_png": base64.b64encode(self.relevance_png()).decode("ascii"),
            "overlay_png": base64.b64encode(self.overlay_png(alpha)).decode("ascii"),
        }


def explain(predictor: Predictor, image: bytes, code: str | None, name: str) -> Heatmap:
    """Answer for one image and say what spoke for a class, the diagnosis unless another is named.

    Raises:
        Problem: the image cannot be read, or the class is unknown.
    """
    if code is not None and code not in predictor.bundle.codes:
        raise Problem(
            "unknown_class", f"The model has no class {code[:40]!r}. It has {', '.join(predictor.bundle.codes)}."
        )
    try:
        return Heatmap(predictor.explain(image, code, name=name))
    except ImageError as error:
        raise of_image(error) from None


FIGURES = ("accuracy", "balanced_accuracy", "macro_auc", "ece")


def model_facts(bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """Return the model as one JSON object; figures are those of the bundle, with their intervals."""
    known = card_text.model_facts(bundle.card)
    shared = ("modality", "calibrated", "leaky", "input", "tested_on", "not_tested_on", "licence")
    return {
        "name": bundle.name,
        "version": bundle.version,
        "sha256": bundle.sha256,
        "software": f"dermlens {__version__}",
        "disclaimer": DISCLAIMER,
        "scope": bundle.scope,
        **{name: known[name] for name in shared},
        "classes": [_class(code, name) for code, name in zip(bundle.codes, bundle.names, strict=True)],
        "decision_rule": bundle.decision_rule.as_dict(),
        "metrics": {name: getattr(bundle.card.metrics, name) for name in FIGURES},
        "operating_points": [point.as_dict() for point in bundle.trust.operating_points],
        "prediction_set_level": None if bundle.trust.sets is None else bundle.trust.sets.level,
        "limits": settings.limits(),
        "card": card_text.model_card(bundle.card),
    }


def _class(code: str, name: str) -> dict[str, Any]:
    known = DIAGNOSES.get(code)
    if known is None:
        return {"code": code, "name": name, "malignancy": "unknown", "icd10": "", "icd11": "", "plain": ""}
    return {
        "code": code,
        "name": name,
        "malignancy": known.malignancy,
        "icd10": known.icd10,
        "icd11": known.icd11,
        "plain": known.plain,
    }
