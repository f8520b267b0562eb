"""An evaluation as one self-contained HTML page: verdict, figures, sections with tables, plots and pictures."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.diagnoses import DISCLAIMER
from dermlens.errors import StorageError

_JPEG_QUALITY = 85
_FIGURE = re.compile(r"-?\d[\d.]*( \[[-\d., ]+\])?$")  # 0.712 [0.650, 0.771], not to be broken


@dataclass(frozen=True)
class Table:
    """A table of text; a cell beginning with "#" links to the section of that name."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class Shot:
    """Pictures of one case side by side, uint8 RGB, with what stands under them; `note` may be empty."""

    pictures: Sequence[npt.NDArray[np.uint8]]
    label: str
    name: str
    note: str = ""


@dataclass(frozen=True, eq=False)
class Part:
    """One section of the page; `key` is what links point to."""

    key: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[tuple[bytes, str]] = ()
    shots: Sequence[Shot] = ()
    note: str = ""


def write_evaluation_page(
    path: Path, *, title: str, about: str, verdict: Sequence[str], figures: Mapping[str, str], parts: Sequence[Part]
) -> None:
    """Write the page; it needs no network.

    Args:
        about: what was scored, one line.
        verdict: plain sentences, shown first.
        figures: number by name, shown as tiles.

    Raises:
        StorageError: the file cannot be written.
    """
    template = Template(resources.files("dermlens.reporting").joinpath("templates/evaluation.html").read_text("utf-8"))
    page = template.substitute(
        title=html.escape(title),
        about=html.escape(about),
        disclaimer=html.escape(DISCLAIMER),
        verdict="".join(f"<p>{html.escape(sentence)}</p>" for sentence in verdict),
        figures="".join(f"<div><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>" for k, v in figures.items()),
        contents="".join(f'<li><a href="#{p.key}">{html.escape(p.title)}</a></li>' for p in parts),
        parts="\n".join(_part(part) for part in parts),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StorageError(
            f"The report could not be written to {path}: {error.strerror or error}.",
            remedy="Choose another --out, or free some space.",
        ) from error


def _part(part: Part) -> str:
    text = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in part.text)
    tables = "".join(_table(table) for table in part.tables)
    plots = "".join(_plot(png, words) for png, words in part.plots)
    shots = "".join(_shot(shot) for shot in part.shots)
    return (
        f'<section id="{part.key}"><h2>{html.escape(part.title)}</h2>{text}'
        + (f'<div class="plots">{plots}</div>' if plots else "")
        + tables
        + (f'<div class="shots">{shots}</div>' if shots else "")
        + (f'<p class="soft">{html.escape(part.note)}</p>' if part.note else "")
        + "</section>"
    )


def _table(table: Table) -> str:
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    rows = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table.rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(cell: str) -> str:
    if cell.startswith("#"):
        key, _, words = cell[1:].partition(" ")
        return f'<td><a href="#{html.escape(key)}">{html.escape(words or key)}</a></td>'
    mark = ' class="missing"' if cell.startswith("missing") else ' class="figure"' if _FIGURE.match(cell) else ""
    return f"<td{mark}>{html.escape(cell)}</td>"


def _plot(png: bytes, words: str) -> str:
    data, text = base64.b64encode(png).decode("ascii"), html.escape(words)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _shot(shot: Shot) -> str:
    pictures = "".join(f'<img src="{_jpeg(pixels)}" alt="{html.escape(shot.label)}">' for pixels in shot.pictures)
    note = f"<span>{html.escape(shot.note)}</span>" if shot.note else ""
    return (
        f'<figure><div class="pair">{pictures}</div><figcaption><b>{html.escape(shot.label)}</b>'
        f"<span>{html.escape(shot.name)}</span>{note}</figcaption></figure>"
    )


def _jpeg(pixels: npt.NDArray[np.uint8]) -> str:
    _, code = cv2.imencode(".jpg", np.ascontiguousarray(pixels[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(code.tobytes()).decode('ascii')}"
