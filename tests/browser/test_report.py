"""The embedded model's report in a real browser: from the file alone, on a desk, on a phone and on paper."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser
from rich.console import Console

from browser_shots import EXAMPLES, SCREENS, SHOTS
from dermlens import Predictor
from dermlens.data.manifest import read_dataset
from dermlens.evaluation.evaluate import evaluate


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the example images, which no model has met."""
    root = tmp_path_factory.mktemp("report")
    for path in EXAMPLES.glob("*.jpg"):
        folder = root / "data" / path.name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    data = read_dataset(root / "data")
    quiet = Console(file=io.StringIO())
    evaluate(Predictor("default"), data, root / "out", split=None, seed=0, console=quiet, controls=True)
    return root / "out" / "report.html"


@pytest.mark.parametrize(
    "screen", ["desk", "paper", *(pytest.param(name, marks=pytest.mark.long) for name in ("dark", "phone"))]
)
def test_the_report_fits_and_can_be_read(browser: Browser, report: Path, screen: str) -> None:
    options, media = SCREENS[screen]
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.goto(report.as_uri())
    page.emulate_media(media=media)  # type: ignore[arg-type]
    assert page.evaluate("document.documentElement.scrollWidth") <= options["viewport"]["width"]
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    if media == "print":
        cut = "[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert page.evaluate(cut) == 0, "paper cannot be scrolled"
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert ink == "rgb(23, 33, 43)", "dark ink on paper, whatever the screen"
    found = Axe().run(page).response["violations"]
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"report-{screen}.png", full_page=True)
    context.close()
    assert wrong == [] and [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
