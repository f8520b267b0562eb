"""Tables in the documents are what their benchmark makes of the committed figures, or say that there are none yet."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from folds import marks

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"pooled": "trust.md", "limits": "accuracy.md", "fold_views": "accuracy.md", "ablations": "accuracy.md"}
PLACES |= {"subgroups": "trust.md", "isic9": "accuracy.md", "versions": "accuracy.md"}
PLACES |= {"choice": "accuracy.md", "ensemble": "accuracy.md"}
NO_PLOT = ("subgroups", "isic9", "versions", "choice", "ensemble")


@pytest.mark.parametrize("name", PLACES)
def test_a_document_shows_the_committed_figures(name: str) -> None:
    start, end = marks(name)
    block = (ROOT / "docs" / PLACES[name]).read_text(encoding="utf-8").split(start)[1].split(end)[0].strip("\n")
    figures = ROOT / "benchmarks" / "results" / f"{name}.json"
    if figures.is_file():
        lines = importlib.import_module(name).lines(json.loads(figures.read_text(encoding="utf-8")))
        assert block == "\n".join(lines), f"run benchmarks/{name}.py with --page docs/{PLACES[name]}"
        assert name in NO_PLOT or (ROOT / "docs" / f"{name}.png").is_file()
    else:
        assert block == "Not run yet."
