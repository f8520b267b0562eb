"""A report page inside a notebook: the whole file in a sandboxed frame, so that neither changes the other's look."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from dermlens.errors import UsageError


@dataclass(frozen=True)
class Page:
    """A self-contained HTML page that an audit or an evaluation wrote, for the last line of a notebook cell.

    Attributes:
        path: the file.
        height_px: of the frame; the page scrolls inside.
    """

    path: Path | str
    height_px: int = 600

    def _repr_html_(self) -> str:
        try:
            page = Path(self.path).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"The page {self.path} cannot be read: {error.strerror or error}.",
                remedy="Give report.html of an evaluation or audit.html of an audit.",
            ) from error
        return (
            f'<iframe sandbox title="{html.escape(Path(self.path).name)}" srcdoc="{html.escape(page)}" '
            f'style="width:100%;height:{int(self.height_px)}px;border:1px solid #ccc"></iframe>'
        )
