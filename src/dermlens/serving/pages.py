"""The page's files, read once at the start; a request's path is looked up in a table, never in a file system."""

from __future__ import annotations

import hashlib
import html
from dataclasses import dataclass
from importlib import resources
from string import Template

from starlette.requests import Request
from starlette.responses import Response

from dermlens.serving.problems import KINDS

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
