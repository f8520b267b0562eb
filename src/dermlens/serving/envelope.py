"""Around every request: security headers, a deadline, one log line, one count; no traceback leaves the server.

Log and metrics hold method, route, status and time. Never an address, file name, image, token or answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dermlens.bundle.bundle import Bundle
from dermlens.serving.problems import Problem
from dermlens.serving.settings import Settings

log = logging.getLogger("dermlens.serving")

METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.3, 2.5, 5.0, 10.0, 30.0)
SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        b"connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        b"require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), geolocation=(), microphone=(), payment=(), usb=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass
class Life:
    """Whether the server is stopping."""

    draining: bool = False


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, bundle: Bundle) -> None:
        self._registry = registry = CollectorRegistry()
        requests = ("dermlens_requests_total", "Requests answered.", ["route", "method", "status"])
        seconds = ("dermlens_request_seconds", "From headers to the end of the answer.", ["route"])
        self._requests = Counter(*requests, registry=registry)
        self._seconds = Histogram(*seconds, buckets=SECONDS, registry=registry)
        self._images = Counter("dermlens_images_total", "Images answered.", ["status"], registry=registry)
        batches = ("dermlens_batch_images", "Images answered together.")
        self.batch: Callable[[int], None] = Histogram(*batches, buckets=(1, 2, 4, 8, 16), registry=registry).observe
        model = Gauge("dermlens_model_info", "The model.", ["name", "version", "sha256"], registry=registry)
        model.labels(bundle.name, bundle.version, bundle.sha256).set(1)

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read when someone asks for it."""
        Gauge(name, description, registry=self._registry).set_function(value)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def image(self, status: str) -> None:
        self._images.labels(status).inc()

    def text(self) -> bytes:
        """Return all of it in the exposition format of Prometheus."""
        return bytes(generate_latest(self._registry))


class Envelope:
    """The outermost ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, life: Life, routes: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._life = life
        self._routes = routes
        self._deadline_s = settings.body_timeout_s + settings.request_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        answer = _Answer(send, self._life)
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._app(scope, receive, answer.send)
        except TimeoutError:
            late = Problem("timeout", f"No answer within {self._deadline_s:g} seconds.", retry_after_s=2)
            await answer.give_up(late, scope, receive)
        except Exception as error:
            log.error("internal error: %s", type(error).__name__, exc_info=log.isEnabledFor(logging.DEBUG))
            await answer.give_up(Problem("internal", "An unexpected error occurred."), scope, receive)
        finally:
            self._record(scope, answer.status, time.perf_counter() - start)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in self._routes else "other"
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        self._metrics.request(route, method, status, seconds)
        log.info("%s %s %d %.1f ms", method, route, status, seconds * 1000)


class _Answer:
    """Adds headers to an answer and remembers its status (0: the client left before there was an answer)."""

    def __init__(self, send: Send, life: Life) -> None:
        self._send = send
        self._life = life
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            closing = [(b"connection", b"close")] if self._life.draining else []
            message = {**message, "headers": [*message.get("headers", []), *SECURITY_HEADERS, *closing]}
        await self._send(message)

    async def give_up(self, problem: Problem, scope: Scope, receive: Receive) -> None:
        """Answer with a problem, unless an answer has begun: then uvicorn closes the connection."""
        if self.status == 0:
            await problem.response()(scope, receive, self.send)
