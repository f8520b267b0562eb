"""Errors as problem details (RFC 9457): what is wrong, what is allowed, what to do. One table of all of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dermlens.errors import DermlensError

MEDIA_TYPE = "application/problem+json"
PAGE = "/problems"
SHARPER = "Take the picture again, or save it anew as JPEG or PNG."


@dataclass(frozen=True)
class Kind:
    """One kind of problem: HTTP status, a title, and what to do unless a request's own remedy is better."""

    status: int
    title: str
    remedy: str


KINDS: dict[str, Kind] = {
    "bad_multipart": Kind(400, "The form cannot be read", "Send multipart/form-data with the field `image`."),
    "no_image": Kind(422, "There is no image", "Send the field `image` of a form, or the image itself as the body."),
    "too_many_images": Kind(422, "Too many images in one request", "Send them in several requests."),
    "unknown_class": Kind(422, "The model has no such class", "GET /api/v1/model lists its classes."),
    "bad_parameter": Kind(422, "A parameter makes no sense", "See /openapi.json for what is allowed."),
    "unauthorised": Kind(401, "A token is needed", "Send `Authorization: Bearer TOKEN` with this server's token."),
    "cross_site": Kind(403, "Other sites may not use this server", "Open this server's own page, or call it directly."),
    "not_found": Kind(404, "There is nothing here", "See /openapi.json for what there is."),
    "method_not_allowed": Kind(405, "This method is not offered here", "See /openapi.json for what there is."),
    "body_timeout": Kind(408, "The upload took too long", "Send it again over a faster connection, or send less."),
    "length_wrong": Kind(400, "Content-Length makes no sense", "Send the right length, or use chunked transfer."),
    "body_too_large": Kind(413, "The request is too large", "Send fewer or smaller images."),
    "too_many_bytes": Kind(413, "The image file is too large", "Save a smaller copy."),
    "content_encoding": Kind(415, "Compressed uploads are not accepted", "Send the body without Content-Encoding."),
    "content_type": Kind(
        415, "This content type is not accepted", "Use multipart/form-data, or image/jpeg, image/png and so on."
    ),
    "unsupported_format": Kind(415, "This is not an image that can be read", "Save or export it as JPEG or PNG."),
    "too_many_pixels": Kind(422, "The image has too many pixels", "Save a smaller copy."),
    "too_small": Kind(422, "The image is too small", "Use the original picture, not an icon of it."),
    "empty_file": Kind(422, "The image is empty", "Choose the file again."),
    "truncated": Kind(422, "The image is cut off", "Copy or download it again."),
    "unreadable": Kind(422, "The image is damaged", SHARPER),
    "bad_image": Kind(422, "The image cannot be used", SHARPER),
    "rate_limited": Kind(429, "Too many requests from here", "Wait as long as Retry-After says."),
    "queue_full": Kind(429, "The server is busy", "Send it again after the seconds that Retry-After says."),
    "out_of_memory": Kind(503, "The server holds too many uploads", "Send it again in a moment."),
    "timeout": Kind(503, "The answer took too long", "Send it again in a moment, or a smaller image."),
    "draining": Kind(503, "The server is being stopped", "Send it to another server, or again in a moment."),
    "not_working": Kind(503, "The server no longer works", "Send it to another server, and start this one anew."),
    "internal": Kind(500, "The server made a mistake", "Send it again; if it fails again, tell who runs this server."),
}


class Problem(Exception):
    """An answer that is a problem.

    Args:
        code: one of `KINDS`.
        detail: what is wrong here, with the value, and what is allowed.
        remedy: what to do; the kind's own when None.
        retry_after_s: whole seconds after which it may work.
    """

    def __init__(self, code: str, detail: str, *, remedy: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.remedy = remedy or KINDS[code].remedy
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        return KINDS[self.code].status

    def as_dict(self) -> dict[str, Any]:
        """Return the members of RFC 9457, with `code` and `remedy`."""
        return {
            "type": f"{PAGE}#{self.code}",
            "title": KINDS[self.code].title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "remedy": self.remedy,
        }

    def response(self) -> Response:
        headers = {"Cache-Control": "no-store"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        body = json.dumps(self.as_dict(), ensure_ascii=False)
        return Response(body, self.status, headers, media_type=MEDIA_TYPE)

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with this problem from pure ASGI code."""
        await self.response()(scope, receive, send)


def of_image(error: DermlensError | dict[str, str]) -> Problem:
    """Turn the error of one image into a problem; its detail names no file, for the image came as bytes."""
    fields = error if isinstance(error, dict) else error.as_dict()
    code = fields["code"] if fields["code"] in KINDS else "bad_image"
    return Problem(code, fields["message"])
