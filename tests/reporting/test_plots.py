"""Plots and figures: drawn for the shortest history too."""

from __future__ import annotations

from pathlib import Path

import pytest

from dermlens.reporting.figures import figure
from dermlens.reporting.plots import plot_history, rates_png


@pytest.mark.parametrize(("epochs", "classes"), [(1, 2), (4, 3), (4, 30)])
def test_a_history_is_drawn(tmp_path: Path, epochs: int, classes: int) -> None:
    rows = [
        {"epoch": e, "select_loss": 1.0 / (e + 1), "select_balanced_accuracy": 0.1 * e}
        | {f"select_recall_{c}": 0.1 * e for c in range(classes)}
        for e in range(epochs)
    ]
    for row in rows[1:]:
        row["train_loss"] = 0.5
    plot_history(rows, tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("names", [["hair"], ["hair", "ruler", "ink"]])
def test_rates_are_drawn(names: list[str]) -> None:
    rates = {name: {"MEL": (0.5, 0.4, 0.6), "NV": (0.0, 0.0, 0.02)} for name in names}
    assert rates_png(rates).startswith(b"\x89PNG")


def test_a_figure_says_what_is_known() -> None:
    assert figure({"value": 0.71234, "low": 0.65, "high": 0.77}) == "0.712 [0.650, 0.770]"
    assert figure({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert figure({"value": None, "low": None, "high": None, "reason": "no image"}) == "n/a"
