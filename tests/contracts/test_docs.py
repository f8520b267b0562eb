"""The documents: the pages that users need, no dead link, no stray figure, and a site that contacts no other host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
USER_PAGES = {
    *("index", "data", "audit", "train", "evaluate", "trust", "answer", "batch", "serve", "export"),
    *("how", "decisions", "faq", "reference", "contributing"),
}
RESULT_PAGES = ("index", "evaluate", "trust", "answer", "batch", "serve")
SENTENCE = "For research and decision support only; not a diagnosis."
MAX_BYTES = 10 * 1024
FETCHED = re.compile(r"""<(?:script|img|iframe|source)[^>]+src="?(https?:[^" >]+)|<link[^>]+href="?(https?:[^" >]+)""")
IN_STYLE = re.compile(r"(?:url\(|@import )[\"']?(https?:[^\"')]+)")
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
slug = slugify(case="lower")


def test_every_page_is_there_is_short_and_has_its_place_on_the_site() -> None:
    assert {path.stem for path in DOCS.glob("*.md")} == USER_PAGES
    assert {path.name: path.stat().st_size for path in DOCS.glob("*.md") if path.stat().st_size > MAX_BYTES} == {}
    named = re.findall(r": ((?:lab/)?\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_link_is_dead(page: Path) -> None:
    dead = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        found = page if not path else (page.parent / path).resolve()
        if not found.is_file() or (anchor and anchor not in anchors(found)):
            dead.append(target)
    assert dead == []


def links(page: Path) -> list[str]:
    """Return what a page links to or shows, addresses on other hosts aside."""
    text = without_code(page)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [target for target in found if not target.startswith("http")]


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings and, in the reference, of what it documents."""
    text = without_code(page)
    for name in re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE):
        text += without_code(ROOT / name)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {slug(heading.replace("`", ""), "-") for heading in headings} | set(
        re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    )


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_contributing_names_the_folders_and_floors_that_are_checked() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "src" / "dermlens").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) == folders
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    floors = [re.sub(r"[()]", "", layer) for layer in reversed(layers) if layer != "(__main__)"]
    assert re.search(r"```text\n(errors\n.*?)```", text, re.DOTALL)[1].splitlines() == floors  # type: ignore[index]


def test_measured_figures_are_in_the_lab_pages_only() -> None:
    example = "0.70 [0.63, 0.76]"  # how to read one, in evaluate.md
    for page in DOCS.glob("*.md"):
        found = re.findall(r"\d\.\d+ \[[^\]]+\]", page.read_text(encoding="utf-8"))
        assert set(found) <= {example}, f"{page.name}: figures belong to docs/lab/"


@pytest.mark.parametrize("name", RESULT_PAGES)
def test_a_page_about_results_says_once_what_they_are_for(name: str) -> None:
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8").count(SENTENCE) == 1


def test_every_picture_is_shown_by_a_page() -> None:
    shown = {(page.parent / target).resolve() for page in WRITTEN for target in links(page)}
    pictures = {path for path in DOCS.rglob("*") if path.suffix in (".png", ".jpg", ".svg")}
    assert {path.name for path in pictures - shown} == set()


@pytest.mark.check
def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=quiet, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert len(pages) >= len(USER_PAGES)
    styles = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css")}
    found = [(path.name, hit) for path, text in pages.items() for hit in FETCHED.findall(text)]
    found += [(path.name, hit) for path, text in (pages | styles).items() for hit in IN_STYLE.findall(text)]
    assert found == []
    reference = next(text for path, text in pages.items() if path.name == "reference.html")
    for name in ("Predictor.predict_many", "Answers.to_frame", "load_keras"):
        assert f'{name}"' in reference, name
