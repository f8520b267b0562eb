"""Plots of a run. Matplotlib is imported inside, since the light core must not need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_history(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw loss and balanced accuracy by epoch into a PNG.

    Args:
        rows: one mapping for each epoch with `epoch`, `select_loss`, `select_balanced_accuracy` and, from epoch 1 on,
            `train_loss`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["select_loss"] for row in rows], marker="o", label="select")
    trained = [row for row in rows if "train_loss" in row]
    left.plot(
        [r["epoch"] for r in trained],
        [r["train_loss"] for r in trained],
        marker="o",
        label="train (smoothed labels)",
    )
    left.set(xlabel="epoch", ylabel="cross-entropy", title="Loss")
    left.legend(frameon=False)
    scores = [row["select_balanced_accuracy"] for row in rows]
    best = max(range(len(rows)), key=scores.__getitem__)
    right.plot(epochs, scores, marker="o", color="tab:green")
    right.plot(epochs[best], scores[best], marker="*", markersize=16, color="tab:green")
    right.annotate(
        f"kept: {scores[best]:.3f}", (epochs[best], scores[best]), textcoords="offset points", xytext=(0, -18)
    )
    right.set(xlabel="epoch", ylabel="balanced accuracy", title="On the select role")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
