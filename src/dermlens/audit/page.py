"""An audit as one self-contained HTML page: verdict first, then each kind of finding with its pictures side by side."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

import cv2

from dermlens.data.images import InputSpec, load_image
from dermlens.diagnoses import DISCLAIMER
from dermlens.errors import ImageError, StorageError

_THUMBNAIL = InputSpec(size_px=160, framing="pad")
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Tile:
    """One picture: its file, what stands under it, and where it comes from."""

    path: Path
    label: str
    name: str


@dataclass(frozen=True)
class Exhibit:
    """Pictures that are shown side by side, with what is to be seen on them."""

    text: str
    tiles: tuple[Tile, ...]
    more: int = 0


@dataclass(frozen=True)
class Section:
    """One kind of finding: what it means, how often it occurs, what to do, and some of its pictures."""

    title: str
    severity: str
    summary: str
    meaning: str
    exhibits: tuple[Exhibit, ...]
    more: int = 0


def write_audit_page(
    path: Path,
    *,
    data: str,
    verdict: Sequence[str],
    figures: Mapping[str, str],
    sections: Sequence[Section],
    plots: Sequence[tuple[bytes, str]],
    repair: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Write the page; pictures that cannot be read show their name only.

    Args:
        verdict: plain sentences, shown first.
        figures: number by name, shown as tiles.
        plots: PNG bytes with their description.
        repair: sentences on what was, or could be, repaired.

    Raises:
        StorageError: the file cannot be written.
    """
    template = Template(resources.files("dermlens.reporting").joinpath("templates/audit.html").read_text("utf-8"))
    thumbnails: dict[Path, str] = {}
    page = template.substitute(
        data=html.escape(data),
        disclaimer=html.escape(DISCLAIMER),
        verdict="".join(f"<p>{html.escape(sentence)}</p>" for sentence in verdict),
        figures="".join(f"<div><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>" for k, v in figures.items()),
        contents="".join(
            f'<li class="{s.severity}"><a href="#s{i}">{html.escape(s.summary)}</a></li>'
            for i, s in enumerate(sections)
        ),
        sections="\n".join(_section(i, section, thumbnails) for i, section in enumerate(sections)),
        plots="".join(_plot(png, text) for png, text in plots),
        repair="".join(f"<p>{html.escape(sentence)}</p>" for sentence in repair),
        notes="".join(f"<li>{html.escape(note)}</li>" for note in notes),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"The report could not be written to {path}: {error.strerror or error}.",
            remedy="Choose another --out, or free some space.",
        ) from error


def _section(number: int, section: Section, thumbnails: dict[Path, str]) -> str:
    exhibits = "".join(_exhibit(exhibit, thumbnails) for exhibit in section.exhibits)
    more = f'<p class="soft">{section.more} more in audit.json.</p>' if section.more else ""
    return (
        f'<section id="s{number}" class="{section.severity}"><p class="kind">{section.severity}</p>'
        f"<h2>{html.escape(section.title)}</h2><p><b>{html.escape(section.summary)}.</b> "
        f'{html.escape(section.meaning)}</p><div class="exhibits">{exhibits}</div>{more}</section>'
    )


def _exhibit(exhibit: Exhibit, thumbnails: dict[Path, str]) -> str:
    tiles = "".join(_tile(tile, thumbnails) for tile in exhibit.tiles)
    more = f'<p class="soft">and {exhibit.more} more</p>' if exhibit.more else ""
    row = f'<div class="tiles">{tiles}</div>' if tiles else ""
    return f"<article>{row}<p>{html.escape(exhibit.text)}</p>{more}</article>"


def _tile(tile: Tile, thumbnails: dict[Path, str]) -> str:
    if tile.path not in thumbnails:
        thumbnails[tile.path] = _thumbnail(tile.path)
    picture, name, label = thumbnails[tile.path], html.escape(tile.name), html.escape(tile.label)
    shown = f'<img src="{picture}" alt="{label}: {name}" loading="lazy">' if picture else "<i>cannot be read</i>"
    return f"<figure>{shown}<figcaption><b>{label}</b><span>{name}</span></figcaption></figure>"


def _thumbnail(path: Path) -> str:
    try:
        pixels = load_image(path, _THUMBNAIL)
    except ImageError:
        return ""
    _, code = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(code.tobytes()).decode('ascii')}"


def _plot(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure class="plot"><img src="data:image/png;base64,{data}" alt="{html.escape(text)}">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
    )
