"""Errors as problem details (RFC 9457): one table of everything that can go wrong, and what to do about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """One kind of problem: HTTP status, title, and what to do about it."""

    status: int
    title: str
    remedy: str


NEW_COPY = "Take the picture again, or save it as a new JPEG or PNG file."
ROUTES = "GET /openapi.json lists all routes."
KINDS: dict[str, Kind] = {
    "bad_multipart": Kind(400, "The form cannot be read", "Send multipart/form-data with the field `image`."),
    "length_wrong": Kind(400, "Content-Length is not valid", "Send the right length, or use chunked transfer."),
    "unauthorised": Kind(401, "A token is needed", "Send `Authorization: Bearer TOKEN` with the token of this server."),
    "cross_site": Kind(403, "Other sites may not use this server", "Open the page of this server, or call the API."),
    "not_found": Kind(404, "Not found", ROUTES),
    "method_not_allowed": Kind(405, "Method not allowed", ROUTES),
    "body_timeout": Kind(408, "The upload took too long", "Use a faster connection, or send a smaller image."),
    "body_too_large": Kind(413, "The request is too large", "Send fewer or smaller images."),
    "too_many_bytes": Kind(413, "The image file is too large", "Save a smaller copy."),
    "content_encoding": Kind(415, "Compressed uploads are not accepted", "Send the body without Content-Encoding."),
    "content_type": Kind(415, "Content type not accepted", "Send multipart/form-data, image/jpeg, image/png or alike."),
    "unsupported_format": Kind(415, "Not an image format that can be read", "Save or export it as JPEG or PNG."),
    "no_image": Kind(422, "No image", "Send the field `image` of a form, or the image itself as the body."),
    "too_many_images": Kind(422, "Too many images in one request", "Send them in several requests."),
    "unknown_class": Kind(422, "The model has no such class", "GET /api/v1/model lists its classes."),
    "case_mix": Kind(
        422,
        "Not a case mix of this model",
        "Send equal, training, or CSV or JSON text with a share above 0 for each class of GET /api/v1/model.",
    ),
    "bad_parameter": Kind(422, "A parameter is not valid", "GET /openapi.json lists all parameters."),
    "too_many_pixels": Kind(422, "The image has too many pixels", "Save a smaller copy."),
    "too_small": Kind(422, "The image is too small", "Use the original picture, not a thumbnail."),
    "empty_file": Kind(422, "The image file is empty", "Choose the file again."),
    "truncated": Kind(422, "The image file is incomplete", "Copy or download it again."),
    "unreadable": Kind(422, "The image file is damaged", NEW_COPY),
    "bad_image": Kind(422, "The image cannot be used", NEW_COPY),
    "rate_limited": Kind(429, "Too many requests", "Wait for the seconds in Retry-After, then try again."),
    "queue_full": Kind(429, "The server is busy", "Wait for the seconds in Retry-After, then try again."),
    "internal": Kind(500, "Error in the server", "Try again. If it fails again, tell whoever runs this server."),
    "out_of_memory": Kind(503, "Too many uploads at once", "Try again in a moment."),
    "timeout": Kind(503, "The answer took too long", "Try again in a moment, or send a smaller image."),
    "draining": Kind(503, "The server is stopping", "Try again in a moment, or use another server."),
    "not_working": Kind(503, "The server has failed", "Use another server, and restart this one."),
}


class Problem(Exception):
    """An answer that is a problem.

    Args:
        code: one of `KINDS`.
        detail: what is wrong here, with the value, and what is allowed.
        retry_after_s: whole seconds after which the client may try again.
    """

    def __init__(self, code: str, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s

    def as_dict(self) -> dict[str, Any]:
        """Return the members of RFC 9457, with `code` and `remedy`."""
        kind = KINDS[self.code]
        members = {"type": f"/problems#{self.code}", "title": kind.title, "status": kind.status}
        return {**members, "detail": self.detail, "code": self.code, "remedy": kind.remedy}

    def response(self) -> Response:
        status = KINDS[self.code].status
        headers = {"Cache-Control": "no-store"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(json.dumps(self.as_dict(), ensure_ascii=False), status, headers, media_type=MEDIA_TYPE)


def image_problem(error: dict[str, str]) -> Problem:
    """Return the problem of one image from `DermlensError.as_dict()`; it names no file, as images come as bytes."""
    return Problem(error["code"] if error["code"] in KINDS else "bad_image", error["message"])
