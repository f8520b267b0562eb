"""Take the pictures of the page in the docs, with the embedded model: page.jpg, page-dark.jpg, page-phone.jpg.

    .venv/bin/python scripts/page_pictures.py

Needs the development requirements and a Chromium (scripts/chromium.sh).
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
DOCS, EXAMPLES = ROOT / "docs", ROOT / "examples" / "images"
IMAGES = [EXAMPLES / name for name in ("MEL_ISIC_0000049.jpg", "NV_ISIC_0000019.jpg")]
PICTURES: dict[str, dict[str, Any]] = {
    "page": {"viewport": {"width": 1280, "height": 860}},
    "page-dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
    "page-phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}


@contextmanager
def server() -> Iterator[str]:
    """Serve the embedded model on a free port; gives the address."""
    command = [sys.executable, "-m", "dermlens", "serve", "--port", "0", "--quiet", "--drain", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr or ():
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found[0]
                break
    finally:
        process.terminate()
        process.wait(timeout=60)


def picture(browser: Browser, address: str, **options: Any) -> bytes:
    """Read two example images and return what a visitor sees then, as PNG; on a phone, what is on its screen."""
    page = browser.new_context(**options).new_page()
    page.goto(address)
    page.wait_for_selector(".well")
    page.set_input_files("#file", [str(path) for path in IMAGES])
    page.get_by_role("button", name=re.compile("^Read")).click()
    page.wait_for_selector(".heat[data-shown]")
    page.evaluate("document.activeElement.blur()")
    return page.screenshot(full_page="is_mobile" not in options)


def main() -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        raise SystemExit("No Chromium here: run scripts/chromium.sh first.")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with server() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        for name, options in PICTURES.items():
            image = Image.open(io.BytesIO(picture(browser, address, **options))).convert("RGB")
            image.save(DOCS / f"{name}.jpg", quality=84, optimize=True)
            print(f"docs/{name}.jpg: {image.width} x {image.height}")
        browser.close()


if __name__ == "__main__":
    main()
