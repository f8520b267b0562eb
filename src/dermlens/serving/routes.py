"""The routes under /api/v1: what they answer, and how /openapi.json describes them."""

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
from dermlens.bundle.case_mix import CaseMix
from dermlens.diagnoses import DIAGNOSES, DISCLAIMER
from dermlens.errors import ImageError
from dermlens.inference.explain import Explanation
from dermlens.inference.prediction import Prediction
from dermlens.inference.predictor import Predictor
from dermlens.serving import schemas
from dermlens.serving.batching import Batcher
from dermlens.serving.client_mix import MixDesk
from dermlens.serving.envelope import Metrics
from dermlens.serving.problems import MEDIA_TYPE, Problem, image_problem
from dermlens.serving.settings import Settings
from dermlens.serving.uploads import MAX_FIELD_BYTES, Upload, read_upload

NO_STORE = {"Cache-Control": "no-store"}
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff", "application/octet-stream")
CaseMixParameter = Annotated[
    str | None,
    Query(
        max_length=MAX_FIELD_BYTES,
        description="How common each diagnosis is beforehand: `equal`, `training`, or JSON (code: share) or CSV (code, "
        "share) text with a share above 0 for each class. It may be a form field instead. Default: `case_mix` of "
        "GET /api/v1/model.",
        examples=["equal", '{"MEL": 1, "NV": 9}'],
    ),
]
FIGURES = ("accuracy", "balanced_accuracy", "macro_auc", "ece")


@dataclass(frozen=True)
class Service:
    """What the routes work with."""

    predictor: Predictor
    batcher: Batcher
    settings: Settings
    metrics: Metrics
    mixes: MixDesk

    async def upload(self, request: Request) -> Upload:
        """Read the images of a request."""
        content_type = request.headers.get("content-type", "")
        return read_upload(await request.body(), content_type, max_images=self.settings.max_images)

    async def predict(self, images: list[bytes], mix: CaseMix | None) -> list[Prediction]:
        """Answer for images, named `image-1` and so on, within the time limit; at the server's mix when None."""
        names = [f"image-{n}" for n in range(1, len(images) + 1)]
        answers: list[Prediction] = await self._in_time(self._predict(images, names, mix))
        for answer in answers:
            self.metrics.image(answer.status)
        return answers

    async def _predict(self, images: list[bytes], names: list[str], mix: CaseMix | None) -> list[Prediction]:
        answers = await self.batcher.predict(images, names)
        return answers if mix is None else await asyncio.to_thread(self.mixes.restate, answers, mix)

    async def explain(self, image: bytes, code: str | None, mix: CaseMix | None) -> Explanation:
        """Return the evidence in one image for a class, the diagnosis when `code` is None. Raises Problem."""
        codes = self.predictor.bundle.codes
        if code is not None and code not in codes:
            raise Problem("unknown_class", f"The model has no class {code[:40]!r}. It has {', '.join(codes)}.")
        work = self.batcher.call(lambda: self.mixes.explain(image, code, mix, name="image-1"), image)
        try:
            found: Explanation = await self._in_time(work)
        except ImageError as error:
            raise image_problem(error.as_dict()) from None
        return found

    async def _in_time(self, work: Any) -> Any:
        allowed_s = self.settings.request_timeout_s
        try:
            async with asyncio.timeout(allowed_s):
                return await work
        except TimeoutError:
            raise Problem("timeout", f"No answer within {allowed_s:g} seconds.", retry_after_s=2) from None


def api_routes(service: Service) -> APIRouter:
    """Return the routes under /api/v1."""
    router = APIRouter(prefix="/api/v1")
    facts = json_response(model_facts(service.predictor, service.settings))
    upload_problems = _problems(400, 401, 403, 408, 413, 415, 422, 429, 503)

    @router.post(
        "/predictions",
        summary="Classify images",
        responses={200: _prediction_answers(), **upload_problems},
        openapi_extra={"requestBody": _request_body("case_mix")},
    )
    async def predictions(request: Request, case_mix: CaseMixParameter = None) -> Response:
        upload = await service.upload(request)
        answers = await service.predict(upload.images, service.mixes.read(case_mix or upload.fields.get("case_mix")))
        if len(answers) > 1:
            return json_response({"predictions": [answer.as_dict() for answer in answers]})
        if answers[0].error is not None:
            raise image_problem(answers[0].error)
        return json_response(answers[0].as_dict())

    @router.post(
        "/explanations",
        summary="Show the evidence for a class in one image",
        responses={200: _explanation_answers(), **upload_problems},
        openapi_extra={"requestBody": _request_body("code", "case_mix", several=False)},
    )
    async def explanations(
        request: Request,
        code: Annotated[str | None, Query(max_length=64, description="The class; default: the diagnosis.")] = None,
        picture: Annotated[Literal["overlay", "relevance"], Query(description="Which PNG.")] = "overlay",
        alpha: Annotated[float, Query(ge=0, le=1, description="Strength of the colours in the overlay.")] = 0.55,
        case_mix: CaseMixParameter = None,
    ) -> Response:
        upload = await service.upload(request)
        if len(upload.images) > 1:
            raise Problem("too_many_images", f"The request has {len(upload.images)} images. One is allowed here.")
        mix = service.mixes.read(case_mix or upload.fields.get("case_mix"))
        found = await service.explain(upload.images[0], code or upload.fields.get("code") or None, mix)
        if "application/json" in request.headers.get("accept", ""):
            return json_response(_explanation(found, alpha))
        png = found.as_png(alpha) if picture == "overlay" else _relevance_png(found)
        return Response(png, headers=NO_STORE, media_type="image/png")

    @router.get(
        "/model",
        summary="The model, its classes, its card and the limits",
        responses={200: {"model": schemas.ModelShape, "description": "The model."}, **_problems(401, 429)},
    )
    async def model() -> Response:
        return facts

    return router


def json_response(value: Any) -> Response:
    """Return JSON that no cache stores."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return Response(body, headers=NO_STORE, media_type="application/json")


def _explanation(found: Explanation, alpha: float) -> dict[str, Any]:
    """Return an explanation for JSON, its pictures in base64."""
    return {
        "prediction": found.prediction.as_dict(),
        "code": found.code,
        "logit": round(found.logit, 6),
        "width_px": found.relevance.shape[1],
        "height_px": found.relevance.shape[0],
        "relevance_png": base64.b64encode(_relevance_png(found)).decode("ascii"),
        "overlay_png": base64.b64encode(found.as_png(alpha)).decode("ascii"),
    }


def _relevance_png(found: Explanation) -> bytes:
    """Return the relevance as a grey PNG, 255 where it is largest."""
    _, code = cv2.imencode(".png", np.round(found.relevance * 255).astype(np.uint8))
    return bytes(code.tobytes())


def model_facts(predictor: Predictor, settings: Settings) -> dict[str, Any]:
    """Return the model as one JSON object: classes in plain words, test figures with their intervals, limits."""
    bundle, mix = predictor.bundle, predictor.case_mix
    known, rule = card_text.model_facts(bundle.card), bundle.trust.facts.prediction_sets
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
        "case_mix": mix.as_dict(),
        "training_mix": bundle.card.training_mix.as_dict(),
        "metrics": {name: getattr(bundle.card.metrics, name) for name in FIGURES},
        "operating_points": [point.as_dict() for point in bundle.limits(mix).points],
        "prediction_set_level": None if rule is None else rule.level,
        "limits": settings.limits(),
        "card": bundle.model_card(),
    }


def _class(code: str, name: str) -> dict[str, Any]:
    known = DIAGNOSES.get(code)
    malignancy = known.malignancy if known else "unknown"
    texts = {key: getattr(known, key, "") for key in ("icd10", "icd11", "plain")}
    return {"code": code, "name": name, "malignancy": malignancy, **texts}


def _request_body(*fields: str, several: bool = True) -> dict[str, Any]:
    """Describe an upload: a form, or one raw image."""
    binary = {"type": "string", "format": "binary", "description": "the bytes of an image file"}
    image = {"type": "array", "items": binary, "minItems": 1} if several else binary
    properties = {"image": image, **{name: {"type": "string"} for name in fields}}
    form = {"type": "object", "required": ["image"], "properties": properties, "additionalProperties": False}
    raw = {name: {"schema": {"type": "string", "format": "binary"}} for name in IMAGE_TYPES}
    return {"required": True, "content": {"multipart/form-data": {"schema": form}, **raw}}


def _ref(shape: type[Any]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}


def _prediction_answers() -> dict[str, Any]:
    examples = {
        "one": {"summary": "One image", "value": schemas.PREDICTION_EXAMPLE},
        "several": {"summary": "Several images", "value": {"predictions": [schemas.PREDICTION_EXAMPLE]}},
    }
    return {
        "description": "One image: its prediction. Several images: all predictions.",
        "model": schemas.PredictionShape | schemas.PredictionsShape,
        "content": {"application/json": {"examples": examples}},
    }


def _explanation_answers() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "description": "A PNG; with `Accept: application/json` both pictures and the prediction.",
        "model": schemas.ExplanationShape,
        "content": {"image/png": binary, "application/json": {"schema": _ref(schemas.ExplanationShape)}},
    }


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problems that a route may answer with."""
    example = Problem("too_many_pixels", "The image has 81,000,000 pixels. At most 50,000,000 are allowed.")
    content = {MEDIA_TYPE: {"schema": _ref(schemas.ProblemShape), "example": example.as_dict()}}
    return {status: {"description": "See /problems.", "content": content} for status in statuses}
