"""The page of `predict --html` in a real browser: from the file alone, on a desk, on a phone, dark and on paper."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from browser_shots import EXAMPLES, SCREENS, SHOTS
from dermlens import Predictor
from dermlens.reporting.page import write_page
from dermlens.reporting.proven import read_proven


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three examples, noise that the model does not know, and a picture to take again."""
    folder, predictor = tmp_path_factory.mktemp("answers"), Predictor("default")
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "noise.png"), noise)
    cv2.imwrite(str(folder / "black.png"), 0 * noise)
    names = [*sorted(EXAMPLES.glob("*.jpg"))[1:4], *sorted(folder.glob("*.png"))]
    write_page(
        list(predictor.predict_many(names)),
        predictor.bundle,
        folder / "page.html",
        proven=read_proven(EXAMPLES / "LICENCES.csv"),
    )
    return folder / "page.html"


@pytest.mark.parametrize(
    "screen", ["paper", *(pytest.param(name, marks=pytest.mark.long) for name in ("desk", "dark", "phone"))]
)
def test_the_page_of_answers_fits_and_can_be_read(browser: Browser, answers: Path, screen: str) -> None:
    options, media = SCREENS[screen]
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.goto(answers.as_uri())
    page.emulate_media(media=media)  # type: ignore[arg-type]
    assert page.evaluate("document.documentElement.scrollWidth") <= options["viewport"]["width"]
    shown = page.evaluate("[...document.querySelectorAll('details p')].map(p => p.checkVisibility())")
    assert len(shown) > 10 and set(shown) == {media == "print"}, "folded on a screen, open on paper"
    found = Axe().run(page).response["violations"]
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"answers-{screen}.png", full_page=True)
    context.close()
    assert wrong == [] and [v["id"] for v in found] == []
