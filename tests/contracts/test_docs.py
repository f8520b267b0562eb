"""The site: every document is on it, every link and name in it is right, and it asks no other host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FETCHED = re.compile(r"""<(?:script|img|iframe|source)[^>]+src="?(https?:[^" >]+)|<link[^>]+href="?(https?:[^" >]+)""")
IN_STYLE = re.compile(r"(?:url\(|@import )[\"']?(https?:[^\"')]+)")


def test_every_document_has_its_place_on_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": (\w+\.md)$", text, re.MULTILINE))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=quiet, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert len(pages) >= 10
    styles = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css")}
    found = [(path.name, hit) for path, text in pages.items() for hit in FETCHED.findall(text)]
    found += [(path.name, hit) for path, text in (pages | styles).items() for hit in IN_STYLE.findall(text)]
    assert found == []
    reference = next(text for path, text in pages.items() if path.name == "reference.html")
    for name in ("Predictor.predict_many", "Answers.to_frame", "outputs.load_keras"):
        assert f'{name}"' in reference, name
