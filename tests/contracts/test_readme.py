"""The README's figures are those of the embedded model."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_screen_says_what_it_is_shows_the_page_and_names_two_commands_and_three_results() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert "For research and decision support only; not a diagnosis." in first
    assert "](docs/page.jpg)" in first and (ROOT / "docs" / "page.jpg").is_file()
    assert "make demo" in first and "make test" in first
    assert len(re.findall(r"^- .*\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", first, re.MULTILINE)) == 3


def test_every_source_file_has_its_place_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {p.name for p in (ROOT / "src" / "dermlens").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert sorted(name for name in names if f"`{name}`" not in text and f"/{name}`" not in text) == []
