"""Pictures of the page, kept for people to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "images"
SHOTS = ROOT / "build" / "screenshots"
SCREENS: dict[str, tuple[dict[str, Any], str]] = {
    "desk": ({"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}, "screen"),
    "dark": ({"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"}, "screen"),
    "phone": ({"viewport": {"width": 390, "height": 844}}, "screen"),
    "paper": ({"viewport": {"width": 718, "height": 1000}, "color_scheme": "dark"}, "print"),
}
"""Name -> options of a browser context, and the medium."""


def shoot(page: Page, name: str) -> None:
    """Keep a picture of the page as `build/screenshots/NAME.png`; of an open dialog, what is on the screen."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=page.locator("dialog").count() == 0)
