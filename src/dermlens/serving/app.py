"""The application: routes, page, gate and envelope around one Predictor.

The page's files, read once at the start; a request's path is looked up in a table, never in a file system.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from dermlens import __version__
from dermlens.diagnoses import DISCLAIMER
from dermlens.inference.predictor import Predictor
from dermlens.serving.batching import Batcher
from dermlens.serving.envelope import Envelope, Life, Metrics
from dermlens.serving.gate import Gate, Held
from dermlens.serving.problems import KINDS, Problem
from dermlens.serving.routes import NO_STORE, Service, api_routes, json_response
from dermlens.serving.schemas import HealthShape, ProblemShape
from dermlens.serving.settings import Settings


def create_app(predictor: Predictor, settings: Settings | None = None, life: Life | None = None) -> ASGIApp:
    """Put the server together.

    Args:
        predictor: loaded once, with the settings' image limits.
        settings: the limits, the defaults when None.
        life: set to draining by whoever stops the server.
    """
    settings = settings or Settings()
    life = life or Life()
    metrics = Metrics()
    metrics.model(predictor.bundle.name, predictor.bundle.version, predictor.bundle.sha256)
    batcher = Batcher(
        predictor,
        queue_images=settings.queue_images,
        batch_images=settings.batch_images,
        on_batch=metrics.batch,
    )
    held = Held(settings.max_held_bytes)
    metrics.watch("dermlens_images_pending", "Images that wait or run.", lambda: batcher.pending)
    metrics.watch("dermlens_upload_bytes", "Bytes of uploads in memory.", lambda: held.bytes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.open()
        yield
        batcher.close()

    service = Service(predictor, batcher, settings, metrics)
    pages = load_pages()
    app = _framework(lifespan)
    app.include_router(api_routes(service))
    _add_health(app, life, metrics, batcher)
    _add_pages(app, pages)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    routes = frozenset({*pages, *(getattr(route, "path", "") for route in app.routes), *_api_paths(app)})
    gate = Gate(app, settings, held, batcher.admit)
    return Envelope(gate, settings, metrics, life, routes)


def _framework(lifespan: Callable[[FastAPI], Any]) -> FastAPI:
    app = FastAPI(
        title="dermlens",
        version=__version__,
        description=f"What a photograph of a skin lesion shows. {DISCLAIMER}",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _api_paths(app: FastAPI) -> list[str]:
    return list(app.openapi()["paths"])


async def _problem(_: Request, error: Exception) -> Response:
    if isinstance(error, Problem):
        return error.response()
    raise error


async def _unexpected(_: Request, error: Exception) -> Response:
    return Problem("internal", "An unexpected error.").response()


async def _http(request: Request, error: Exception) -> Response:
    """Turn the framework's own refusals into problems."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 405:
        response = Problem("method_not_allowed", f"{request.method[:20]} is not offered here.").response()
        response.headers.update(getattr(error, "headers", None) or {})
        return response
    if status == 404:
        return Problem("not_found", "No page and no part of the API has this path.").response()
    return Problem("bad_parameter", "The request cannot be understood.").response()


async def _invalid(_: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) and error.errors() else {}
    where = ".".join(str(part) for part in first.get("loc", ())[1:]) or "a parameter"
    return Problem("bad_parameter", f"{where[:60]}: {first.get('msg', 'it makes no sense')}.").response()


def _add_health(app: FastAPI, life: Life, metrics: Metrics, batcher: Batcher) -> None:
    @app.get("/healthz", summary="Is the process alive?", responses={200: {"model": HealthShape}})
    async def healthz() -> Response:
        return json_response({"status": "ok"})

    @app.get(
        "/readyz",
        summary="Should requests be sent here?",
        responses={
            200: {"model": HealthShape},
            503: {"model": ProblemShape, "description": "It is being stopped, or broken."},
        },
    )
    async def readyz() -> Response:
        if life.draining:
            raise Problem("draining", "This server answers what has come and takes no more.", retry_after_s=2)
        if not batcher.alive:
            raise Problem("not_working", "A thread that answers has ended.", retry_after_s=2)
        return json_response({"status": "ok"})

    @app.get("/metrics", summary="Counts and times for Prometheus", responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        return Response(metrics.text(), headers=NO_STORE, media_type=metrics.content_type)


def _add_pages(app: FastAPI, pages: dict[str, Page]) -> None:
    def route(page: Page) -> Callable[[Request], Awaitable[Response]]:
        async def send(request: Request) -> Response:
            return page.response(request)

        return send

    for path, page in pages.items():
        app.add_api_route(path, route(page), methods=["GET", "HEAD"], include_in_schema=False)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document, with the token as a way to log in and problems in their own media type."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            openapi_version="3.1.0",
        )
        components = document.setdefault("components", {})
        shapes = components.setdefault("schemas", {})
        shapes["ProblemShape"] = ProblemShape.model_json_schema()
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"token": []}]
        app.openapi_schema = document
    return app.openapi_schema


TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}


@dataclass(frozen=True)
class Page:
    """One file as it is sent."""

    body: bytes
    media_type: str
    etag: str

    def response(self, request: Request) -> Response:
        """Return the file, or 304 when the browser has it already."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type=self.media_type)


def load_pages() -> dict[str, Page]:
    """Return all files of the page by the path they are asked for, `/` and `/problems` included."""
    pages: dict[str, Page] = {}
    for entry in resources.files("dermlens.serving").joinpath("static").iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix in TYPES:
            body = entry.read_bytes()
            if entry.name == "problems.html":
                pages["/problems"] = _page(_problems(body.decode("utf-8")), suffix)
            elif entry.name == "index.html":
                pages["/"] = _page(body, suffix)
            else:
                pages[f"/static/{entry.name}"] = _page(body, suffix)
    return pages


def _page(body: bytes, suffix: str) -> Page:
    return Page(body, TYPES[suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _problems(template: str) -> bytes:
    rows = "".join(
        f'<tr id="{code}"><td><code>{code}</code></td><td>{kind.status}</td>'
        f"<td>{html.escape(kind.title)}</td><td>{html.escape(kind.remedy)}</td></tr>"
        for code, kind in KINDS.items()
    )
    return Template(template).substitute(rows=rows).encode("utf-8")
