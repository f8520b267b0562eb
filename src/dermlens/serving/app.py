"""The application: API, health, page, gate and envelope around one Predictor."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from dermlens import __version__
from dermlens.diagnoses import DISCLAIMER
from dermlens.html import render
from dermlens.inference.predictor import Predictor
from dermlens.serving.batching import Batcher
from dermlens.serving.client_mix import MixDesk
from dermlens.serving.envelope import Envelope, Life, Metrics
from dermlens.serving.gate import Gate, UploadMemory
from dermlens.serving.problems import KINDS, Problem
from dermlens.serving.routes import NO_STORE, Service, api_routes, json_response
from dermlens.serving.schemas import HealthShape, ProblemShape
from dermlens.serving.settings import Settings

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".jpg": "image/jpeg",
}


def create_app(predictor: Predictor, settings: Settings | None = None, life: Life | None = None) -> ASGIApp:
    """Put the server together.

    Args:
        predictor: loaded once, with the image limits of the settings.
        settings: the limits; the defaults when None.
        life: set to draining by whoever stops the server.
    """
    settings, life = settings or Settings(), life or Life()
    metrics = Metrics(predictor.bundle)
    batcher = Batcher(
        predictor, queue_images=settings.queue_images, batch_images=settings.batch_images, on_batch=metrics.batch
    )
    memory = UploadMemory(settings.max_upload_bytes)
    metrics.watch("dermlens_images_pending", "Images that wait or run.", lambda: batcher.pending)
    metrics.watch("dermlens_upload_bytes", "Bytes of uploads in memory.", lambda: memory.bytes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.open()
        yield
        batcher.close()

    app = FastAPI(
        title="dermlens",
        version=__version__,
        description=f"Classifies images of skin lesions. {DISCLAIMER}",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.include_router(api_routes(Service(predictor, batcher, settings, metrics, MixDesk(predictor))))
    _add_health(app, life, metrics, batcher)
    _add_pages(app)
    for kind in (Problem, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer_error)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    routes = frozenset({*(getattr(route, "path", "") for route in app.routes), *app.openapi()["paths"]})
    return Envelope(Gate(app, settings, memory, batcher.admit), settings, metrics, life, routes)


async def _answer_error(request: Request, error: Exception) -> Response:
    """Turn every error into a problem, also those of the framework."""
    if isinstance(error, Problem):
        return error.response()
    if isinstance(error, RequestValidationError):
        first = (error.errors() or [{}])[0]
        where = ".".join(str(part) for part in first.get("loc", ())[1:]) or "a parameter"
        return Problem("bad_parameter", f"{where[:60]}: {first.get('msg', 'not valid')}.").response()
    if not isinstance(error, HTTPException):
        return Problem("internal", "An unexpected error occurred.").response()
    if error.status_code == 405:
        response = Problem("method_not_allowed", f"{request.method[:20]} is not allowed here.").response()
        response.headers.update(error.headers or {})
        return response
    if error.status_code == 404:
        return Problem("not_found", "There is no page or route at this path.").response()
    return Problem("bad_parameter", "The request is not valid.").response()


def _add_health(app: FastAPI, life: Life, metrics: Metrics, batcher: Batcher) -> None:
    @app.get("/healthz", summary="Is the process alive?", responses={200: {"model": HealthShape}})
    async def healthz() -> Response:
        return json_response({"status": "ok"})

    unready = {"model": ProblemShape, "description": "The server is stopping, or has failed."}

    @app.get("/readyz", summary="Does it take requests?", responses={200: {"model": HealthShape}, 503: unready})
    async def readyz() -> Response:
        if life.draining:
            raise Problem("draining", "The server finishes its requests and takes no more.", retry_after_s=2)
        if not batcher.alive:
            raise Problem("not_working", "A thread of the server has ended.", retry_after_s=2)
        return json_response({"status": "ok"})

    @app.get("/metrics", summary="Counts and times for Prometheus", responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        return Response(metrics.text(), headers=NO_STORE, media_type=CONTENT_TYPE_LATEST)


def _add_pages(app: FastAPI) -> None:
    """Add the files of the page. They are read once, now: no path of a request reaches the file system."""
    pages = {"/problems": (render("problems.html", kinds=KINDS).encode(), ".html")}
    for entry in resources.files("dermlens.serving").joinpath("static").iterdir():
        path = "/" if entry.name == "index.html" else f"/static/{entry.name}"
        pages[path] = (entry.read_bytes(), Path(entry.name).suffix)
    for path, (body, suffix) in pages.items():
        app.add_api_route(path, _sender(body, MEDIA_TYPES[suffix]), methods=["GET", "HEAD"], include_in_schema=False)


def _sender(body: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    """Return a route that sends a file, or 304 when the browser has it already."""
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=media_type)

    return send


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document, with the bearer token and the problems."""
    if app.openapi_schema:
        return app.openapi_schema
    document = FastAPI.openapi(app)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["ProblemShape"] = ProblemShape.model_json_schema()
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"token": []}]
    return document
