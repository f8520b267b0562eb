"""Pages escape what strangers wrote, need nothing from outside, and say when they cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from dermlens.errors import StorageError, UsageError
from dermlens.html import TEMPLATES, Page, data_uri, render, write_page


def test_values_are_escaped_and_a_missing_one_is_an_error() -> None:
    shown = render("frame.html", name='<script>"', page="<b>", height_px=10)
    assert "<script>" not in shown and "&lt;script&gt;&#34;" in shown and 'srcdoc="&lt;b&gt;"' in shown
    with pytest.raises(UndefinedError):
        render("frame.html", name="report.html")


def test_no_template_needs_anything_from_outside() -> None:
    for template in TEMPLATES.glob("*.html"):
        text = template.read_text(encoding="utf-8")
        assert "http" not in text and "|safe" not in text.replace(" ", "")


def test_a_page_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        write_page(tmp_path / "file" / "page.html", "frame.html", name="", page="", height_px=1)


def test_a_report_in_a_notebook_is_a_sandboxed_frame(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text('<p class="x">')
    shown = Page(tmp_path / "report.html")._repr_html_()
    assert shown.startswith("<iframe sandbox") and "&lt;p class=&#34;x&#34;&gt;" in shown and "600px" in shown
    with pytest.raises(UsageError, match="cannot be read"):
        Page(tmp_path / "none.html")._repr_html_()


def test_a_picture_becomes_a_part_of_its_page() -> None:
    assert data_uri(b"abc") == "data:image/png;base64,YWJj"
