"""Each state of the page: without an accessibility finding, and kept as a picture for people to look at."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from browser_shots import EXAMPLES, SHOTS, shoot

Open = Callable[..., Page]
READ = re.compile("^Read")
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
    "narrow": {
        "viewport": {"width": 320, "height": 640},
        "color_scheme": "light",
        "has_touch": True,
        "is_mobile": True,
    },
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "has_touch": True, "is_mobile": True},
}


ADVICES = (
    ("red", "refer"),
    ("green", "no_referral"),
    ("grey", "uncertain"),
    ("blue", "unfamiliar"),
    ("black", "retake"),
    ("broken", "error"),
)


def findings(page: Page, where: str) -> list[str]:
    """Return axe's findings, and keep its whole report."""
    report = Axe().run(page).response
    SHOTS.mkdir(parents=True, exist_ok=True)
    (SHOTS / f"{where}.axe.json").write_text(json.dumps(report["violations"], indent=1))
    return [f"{where}: {v['id']}" for v in report["violations"]]


@pytest.mark.parametrize(
    "screen", ["light", *(pytest.param(name, marks=pytest.mark.long) for name in ("dark", "phone", "narrow"))]
)
def test_every_state_is_accessible(
    watched: Open, real_address: str, address: str, pictures: dict[str, Path], screen: str
) -> None:
    found: list[str] = []

    def look(page: Page, state: str) -> None:
        shoot(page, f"{screen}-{state}")
        found.extend(findings(page, f"{screen}-{state}"))

    page = watched(real_address, **SCREENS[screen])
    look(page, "start")
    page.get_by_role("button", name="Use the camera").click()
    page.locator("dialog button.primary:enabled").wait_for()
    look(page, "camera")
    page.keyboard.press("Escape")
    page.set_input_files("#file", [str(EXAMPLES / "MEL_ISIC_0000029.jpg"), str(EXAMPLES / "NV_ISIC_0000019.jpg")])
    page.wait_for_selector(".movable canvas")
    look(page, "frame")
    page.get_by_role("button", name=READ).click()
    page.wait_for_selector(".heat[data-shown]")
    page.get_by_text("Details").click()
    look(page, "result")
    page.get_by_role("button", name="Change how common").click()
    page.get_by_label("My own shares").check()
    look(page, "case-mix")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Compare two").click()
    look(page, "compare")
    page.get_by_role("button", name="About").click()
    look(page, "about")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="History").click()
    page.wait_for_selector(".readings img")
    look(page, "history")
    doubtful = watched(address, tolerate="422", **SCREENS[screen])
    for name, state in ADVICES:
        doubtful.set_input_files("#file", str(pictures[name]))
        doubtful.get_by_role("button", name=READ).click()
        doubtful.wait_for_selector(".verdict h2")
        look(doubtful, state)
        doubtful.get_by_role("button", name="Start over").click()
    assert found == []


@pytest.mark.long
def test_print_shows_the_reading_and_no_controls(watched: Open, real_address: str) -> None:
    page = watched(real_address)
    page.set_input_files("#file", str(EXAMPLES / "MEL_ISIC_0000029.jpg"))
    page.get_by_role("button", name=READ).click()
    page.wait_for_selector(".heat[data-shown]")
    page.emulate_media(media="print")
    assert page.locator(".verdict h2").is_visible() and page.locator(".reminder").is_visible()
    assert page.locator(".advice .head").is_visible() and page.locator(".mix").is_visible()
    assert not page.locator("nav").is_visible() and not page.locator(".actions").is_visible()
    shoot(page, "print")
    pdf = page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1, "one sheet"
