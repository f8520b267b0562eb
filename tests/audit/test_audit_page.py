"""The page of an audit: one file, everything escaped, pictures side by side, failures shown as such."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pictures
from dermlens.audit.page import Exhibit, Section, Tile, write_audit_page
from dermlens.errors import StorageError
from dermlens.reporting.plots import classes_png, shares_png


def write(path: Path, tiles: tuple[Tile, ...]) -> str:
    section = Section("<b>Twice</b>", "error", "2 images", "It means this.", (Exhibit("seen & told", tiles, 3),), 7)
    write_audit_page(
        path,
        data="my <data>",
        verdict=["Some are wrong.", "None leaks.", "Repair it."],
        figures={"images": "1,234"},
        sections=[section],
        plots=[(classes_png({"NV": {"train": 5, "test": 2}, "MEL": {"train": 3}}), "Classes")],
        repair=["Nothing was done."],
        notes=["a note"],
    )
    return path.read_text("utf-8")


def test_the_page_is_whole_and_escaped(tmp_path: Path) -> None:
    picture = pictures.save(tmp_path / "a.png", pictures.lesion(1))
    tiles = (Tile(picture, "melanoma", "x/<a>.png"), Tile(tmp_path / "gone.png", "nevus", "gone.png"))
    page = write(tmp_path / "out" / "page.html", tiles)
    assert page.count("<figure><img") == 1 and page.count("cannot be read") == 1
    assert "<data>" not in page and "<b>Twice" not in page and "x/<a>" not in page
    assert "seen &amp; told" in page and "and 3 more" in page and "7 more in audit.json" in page
    assert page.index("Some are wrong.") < page.index("It means this.")
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "$" not in page
    assert "not a diagnosis" in page


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="report could not be written"):
        write(tmp_path / "file" / "page.html", ())


def test_plots_are_pngs() -> None:
    assert shares_png({"all": 0.4}, "balanced accuracy", ("chance", 0.1)).startswith(b"\x89PNG")
    assert classes_png({"NV": {"none": 4}}).startswith(b"\x89PNG")
