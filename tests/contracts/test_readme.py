"""The README: short, readable without scrolling far, and its figures are those of the included model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dermlens.bundle.bundle import load_bundle

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAX_BYTES = 7 * 1024
FIGURE = re.compile(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]")
SENTENCE = "For research and decision support only; not a diagnosis."


def test_it_is_short() -> None:
    assert len(README.encode()) <= MAX_BYTES, "details belong to docs/, figures to docs/lab/"


def test_the_first_screen_says_what_it_is_shows_the_page_and_how_to_get_an_answer() -> None:
    first, _, rest = README.partition("\n## Install")
    assert SENTENCE in first and README.count(SENTENCE) == 1
    assert "](docs/page.jpg)" in first and (ROOT / "docs" / "page.jpg").is_file()
    assert len(first.splitlines()) < 15
    block = rest.partition("```sh\n")[2].partition("```")[0]
    assert "make demo" in block and "dermlens predict photo.jpg" in block


def test_python_takes_five_lines_and_a_model_of_your_own_three() -> None:
    python = README.partition("```python\n")[2].partition("```")[0]
    own = README.partition("\n## Your own model")[2].partition("```sh\n")[2].partition("```")[0]
    assert len([line for line in python.splitlines() if line]) == 5
    assert [line.split()[1] for line in own.splitlines()][1:] == ["train", "predict"] and len(own.splitlines()) == 3


def test_the_headline_gives_three_results_of_the_included_model() -> None:
    bundle = json.loads((ROOT / "src/dermlens/models/default/bundle.json").read_text(encoding="utf-8"))
    region = README.partition("<!-- begin: embedded.headline -->\n")[2].partition("<!-- end: embedded.headline -->")[0]
    metrics, model = bundle["metrics"], load_bundle(ROOT / "src/dermlens/models/default")
    point = model.limits(model.case_mix).referral
    assert point is not None
    measured = [
        metrics["balanced_accuracy"],
        bundle["probe"]["balanced_accuracy"],
        metrics["per_class"]["MEL"]["auc"],
        point.sensitivity,
        point.specificity,
    ]
    assert FIGURE.findall(region.replace("*", "")) == [figure(value) for value in measured]
    assert len(re.findall(r"^- ", region, re.MULTILINE)) == 3
    assert f"{metrics['n']} test images of {metrics['n_lesions']} lesions" in region
    assert len(FIGURE.findall(README.replace("*", ""))) == len(measured), "all other figures belong to docs/lab/"


def figure(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def test_every_page_for_users_is_linked() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"contributing.md"}
    assert {name for name in pages if f"(docs/{name})" not in README} == set()
    assert "(CONTRIBUTING.md)" in README and "\n## Licence\n" in README
