"""Every HTML page of dermlens: one Jinja2 environment that escapes by itself, one base template, no outside address."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermlens.errors import UsageError, os_errors
from dermlens.files import atomic_file

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).resolve().parent / "templates"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: not (name or "").endswith(".md"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Return a template of `templates/` filled in; values are escaped but in Markdown, a missing one is an error."""
    return _environment().get_template(template).render(**values)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a filled-in template as a self-contained page.

    Raises:
        StorageError: the file cannot be written.
    """
    with os_errors(f"The page could not be written to {path}", "Choose another place for it, or free some space."):
        page = render(template, **values).encode("utf-8", "backslashreplace")
        if path.exists() and not path.is_file():  # a device or a pipe
            path.write_bytes(page)
        else:
            with atomic_file(path) as temporary:
                temporary.write_bytes(page)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Return bytes as a `data:` address, for a picture that is a part of its page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Page:
    """A page that an audit or an evaluation wrote, for the last line of a notebook cell: a sandboxed frame.

    Attributes:
        path: the file.
        height_px: of the frame; the page scrolls inside.
    """

    path: Path | str
    height_px: int = 600

    def _repr_html_(self) -> str:
        remedy = "Give report.html of an evaluation or audit.html of an audit."
        with os_errors(f"The page {self.path} cannot be read", remedy, UsageError):
            page = Path(self.path).read_text(encoding="utf-8")
        return render("frame.html", name=Path(self.path).name, page=page, height_px=int(self.height_px))
