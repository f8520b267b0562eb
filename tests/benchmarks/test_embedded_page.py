"""Figures of the embedded model in the documents are those that were measured, on the model that is embedded."""

from __future__ import annotations

import json

import pytest
from accuracy import METHODS
from embedded_page import DOCS, RESULTS, RUNS, marks, written

from dermlens.bundle.bundle import MODELS_DIR, load_bundle
from dermlens.text import figure
from dermlens.training.recipe import make_recipe
from scripts.default_model.recipe import RECIPE


@pytest.mark.parametrize("page", ["trust.md", "accuracy.md"])
def test_a_page_shows_what_was_measured(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert written(page, text) == text, "run benchmarks/embedded_page.py"


@pytest.mark.parametrize("name", RUNS)
def test_it_was_measured_on_the_model_that_is_embedded(name: str) -> None:
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    embedded = load_bundle(MODELS_DIR / "default")
    assert found["model"]["sha256"] == embedded.sha256, "run benchmarks/embedded_page.py --run"


def test_the_protocol_has_a_method_with_the_recipe_of_the_embedded_model() -> None:
    assert make_recipe(METHODS["embedded"]) == RECIPE


def test_a_page_without_a_place_is_told_and_a_figure_has_its_interval() -> None:
    text = (DOCS / "trust.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="novelty: start"):
        written("trust.md", text.replace(marks("novelty")[0], ""))
    assert figure({"value": 0.5, "low": 0.25, "high": 0.75}, 2) == "0.50 [0.25, 0.75]"
    assert figure({"value": None, "low": None, "high": None}) == "n/a"
