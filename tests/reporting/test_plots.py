"""Plots and figures: drawn for the shortest history too."""

from __future__ import annotations

from pathlib import Path

import pytest

from dermlens.reporting.plots import (
    confusion_png,
    plot_confusion,
    plot_curves,
    plot_history,
    plot_reliability,
    rates_png,
    read_history,
    reliability_by_class_png,
)
from dermlens.text import figure


@pytest.mark.parametrize(("epochs", "classes"), [(1, 2), (4, 3), (4, 30)])
def test_a_history_is_drawn(tmp_path: Path, epochs: int, classes: int) -> None:
    rows = [
        {"epoch": e, "select_loss": 1.0 / (e + 1), "select_balanced_accuracy": 0.1 * e, "select_macro_auc": 0.5}
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


@pytest.mark.parametrize("classes", [1, 5])
def test_the_calibration_of_each_class_is_drawn(classes: int) -> None:
    bins = {
        f"c{n}": {"confidence": [0.01, 0.02], "accuracy": [0.0, 0.05], "images": [3.0, 4.0]} for n in range(classes)
    }
    assert reliability_by_class_png(bins, bins).startswith(b"\x89PNG")


def test_a_figure_says_what_is_known() -> None:
    assert figure({"value": 0.71234, "low": 0.65, "high": 0.77}) == "0.712 [0.650, 0.770]"
    assert figure({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert figure({"value": None, "low": None, "high": None, "reason": "no image"}) == "n/a"


def test_plots_return_the_axes_that_they_drew_into(tmp_path: Path) -> None:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    panels = Figure().subplots(1, 4)
    scores = {"select_loss": 1.0, "select_balanced_accuracy": 0.5, "select_macro_auc": 0.5}
    rows = [{"epoch": 0.0, **scores, "select_recall_a": 0.5}]
    assert plot_history(rows, axes=panels[:3]) == tuple(panels[:3])
    assert [line.get_text() for line in panels[1].get_legend().get_texts()] == ["balanced accuracy", "AUC"]
    later = [{**rows[0], "epoch": float(epoch), "select_balanced_accuracy": 0.5 + epoch / 10} for epoch in range(3)]
    for kept, word in ((None, "kept: 0.500"), (2, "kept: 0.700")):
        _, score, _ = plot_history(later, axes=Figure().subplots(1, 3), kept=kept)
        assert [text.get_text() for text in score.texts] == [word]
    bins = {"confidence": [0.2, 0.8], "accuracy": [0.1, 0.9], "images": [3, 4]}
    assert plot_reliability(bins, bins, axis=panels[3]) is panels[3]
    assert isinstance(plot_confusion([[3, 1], [0, 2]], ["a", "b"], axis=panels[3]), Axes)
    assert plot_curves({"a": [[0, 1], [0, 1]]}, ("x", "y"), axis=panels[3]) is panels[3]
    (tmp_path / "history.csv").write_text("epoch,select_loss,train_loss\n0,1.0,\n1,0.5,0.7\n")
    assert read_history(tmp_path / "history.csv") == [
        {"epoch": 0, "select_loss": 1.0},
        {"epoch": 1, "select_loss": 0.5, "train_loss": 0.7},
    ]


def test_pictures_for_pages_open_no_window() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    assert confusion_png([[1, 0], [0, 1]], ["a", "b"]).startswith(b"\x89PNG")
    assert plt.get_fignums() == before
