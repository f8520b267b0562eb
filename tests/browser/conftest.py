"""A real Chromium before a real server; without one the tests say that they did not run.

Every page is watched: a console message of level error, an uncaught exception, or a request to another host fails the
test. Screenshots go to `build/screenshots`, to be looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import live
import tiny
from dermlens import Predictor
from dermlens.bundle.limits import SetRule
from dermlens.bundle.quality import QualityLimits
from dermlens.inference.judge import Reason

NAMES = ("chromium", "chromium-browser", "google-chrome")
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
Open = Callable[..., Page]


class Doubtful(Predictor):
    """The tiny model with every kind of answer: red is sure, grey uncertain, blue unfamiliar, black too dark."""

    def _fields(self, *arguments: Any) -> dict[str, Any]:
        found = super()._fields(*arguments)
        if found["diagnosis_code"] != "NV":
            return found
        strange = Reason("unfamiliar", "This picture is unlike those that the model learned from.")
        advice = Reason("see_clinician", "Have a clinician see the lesion.")
        referral = {**found["referral"], "advised": True}
        nothing = {"malignant_probability": None, "referral": referral, "reasons": (strange,)}
        return {**found, **nothing, "status": "rejected", "why": strange.text, "advice": advice}


def _browser_path() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end of a run, where everybody looks, that no browser was there."""
    if _browser_path() is None:
        terminalreporter.write_line("browser tests NOT RUN: no Chromium here (scripts/chromium.sh installs one)")


@pytest.fixture(scope="package")  # Playwright runs an event loop
def browser() -> Iterator[Browser]:
    path = _browser_path()
    if path is None:
        pytest.skip("NOT RUN: no Chromium here (scripts/chromium.sh installs one where it can)")
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=path, args=[*options, *CAMERA])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blue is a nevus, green a keratosis, red a melanoma; it knows its sets, its doubts and when to refer."""
    quality = QualityLimits(0.0, 0.0, 10.0, 1.0, 1.0, 0.0, 1.0).as_dict()
    return tiny.write(
        tmp_path_factory.mktemp("browser") / "bundle",
        **tiny.named("NV", "BKL", "MEL"),
        calibrate=tiny.known(),
        test=tiny.known(seed=1),
        trust={"prediction_sets": SetRule("probability").as_dict(), "quality": quality},
    )


@pytest.fixture(scope="session")
def address(model: Path) -> Iterator[str]:
    """The server with the tiny model that knows doubt."""
    with live.in_thread(Doubtful(model), queue_images=8) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def real_address() -> Iterator[str]:
    """The server with the embedded model."""
    with live.in_thread(Predictor("default"), queue_images=8) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def watched(browser: Browser) -> Iterator[Open]:
    """Return `open(address, **context options)`; what goes wrong on any of its pages fails the test."""
    wrong: list[str] = []
    contexts = []

    def open_page(address: str, *, tolerate: str = "never", **options: Any) -> Page:
        context = browser.new_context(permissions=["camera"], **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" and tolerate not in m.text else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith((address, "blob:", "data:")) else None)
        page.goto(address + "/")
        page.wait_for_selector(".well, dialog")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return image files: red, green, blue, grey, black, wide (red left, blue right) and broken."""
    import cv2

    folder = tmp_path_factory.mktemp("pictures")
    wide = np.concatenate([tiny.colour("RED", (80, 80)), tiny.colour("BLUE", (80, 80))], axis=1)
    made = {code.lower(): tiny.colour(code, (80, 80)) for code in tiny.CODES} | {"wide": wide}
    made |= {name: np.full((80, 80, 3), grey, np.uint8) for name, grey in (("grey", (84, 92, 86)), ("black", 0))}
    paths = {}
    for name, pixels in made.items():
        paths[name] = folder / f"{name}.png"
        cv2.imwrite(str(paths[name]), pixels[:, :, ::-1])
    paths["broken"] = folder / "broken.png"
    paths["broken"].write_bytes(paths["red"].read_bytes()[:60])
    return paths
