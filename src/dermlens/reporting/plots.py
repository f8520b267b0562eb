"""Plots of a run and of an audit. Matplotlib is imported inside, since the light core must not need it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_LINES = 20  # of more classes only the median recall and the lowest are drawn


def plot_history(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw loss, balanced accuracy and the recall of each class by epoch into a PNG.

    Args:
        rows: one mapping for each epoch with `epoch`, `select_loss`, `select_balanced_accuracy`, a
            `select_recall_<class>` for each class and, from epoch 1 on, `train_loss`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    loss, score, recall = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    loss.plot(epochs, [row["select_loss"] for row in rows], marker="o", label="select")
    trained = [row for row in rows if "train_loss" in row]
    loss.plot([r["epoch"] for r in trained], [r["train_loss"] for r in trained], marker="o", label="train")
    loss.set(xlabel="epoch", ylabel="loss", title="Loss (train: with mixup and smoothed labels)")
    loss.legend(frameon=False)
    scores = [row["select_balanced_accuracy"] for row in rows]
    best = max(range(len(rows)), key=scores.__getitem__)
    score.plot(epochs, scores, marker="o", color="tab:green")
    score.plot(epochs[best], scores[best], marker="*", markersize=16, color="tab:green")
    score.annotate(
        f"kept: {scores[best]:.3f}", (epochs[best], scores[best]), textcoords="offset points", xytext=(0, -18)
    )
    score.set(xlabel="epoch", ylabel="balanced accuracy", title="Balanced accuracy on select")
    _draw_recalls(recall, rows, epochs)
    for axis in (loss, score, recall):
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=120)


def _draw_recalls(axis: Any, rows: Sequence[Mapping[str, float]], epochs: Sequence[float]) -> None:
    prefix = "select_recall_"
    names = [name for name in rows[0] if name.startswith(prefix)]
    if len(names) <= MOST_LINES:
        for name in names:
            axis.plot(epochs, [row[name] for row in rows], marker=".", label=name.removeprefix(prefix))
    else:
        found = [sorted(row[name] for name in names) for row in rows]
        axis.plot(epochs, [values[len(values) // 2] for values in found], marker=".", label="median class")
        axis.plot(epochs, [values[0] for values in found], marker=".", label="lowest class")
    axis.set(xlabel="epoch", ylabel="recall", ylim=(-0.03, 1.03), title="Recall of each class on select")
    if names:
        axis.legend(frameon=False, fontsize=8, ncols=2, loc="lower right")


def classes_png(counts: Mapping[str, Mapping[str, int]]) -> bytes:
    """Draw the images of each class, stacked by split, as PNG bytes; `counts[class][split]`."""
    from matplotlib.figure import Figure

    codes = sorted(counts, key=lambda code: sum(counts[code].values()))
    splits = sorted({split for row in counts.values() for split in row}, reverse=True)
    figure = Figure(figsize=(6, 0.9 + 0.32 * len(codes)), layout="constrained")
    axis = figure.subplots()
    left = [0] * len(codes)
    for split in splits:
        widths = [counts[code].get(split, 0) for code in codes]
        bars = axis.barh(codes, widths, left=left, label="all" if split == "none" else split)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.bar_label(bars, [str(total) for total in left], padding=3)
    axis.set(xlabel="images")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def shares_png(scores: Mapping[str, float], label: str, line: tuple[str, float], top: float = 1.0) -> bytes:
    """Draw named shares from 0 to `top` as bars beside a named line, as PNG bytes."""
    from matplotlib.figure import Figure

    names = list(scores)[::-1]
    figure = Figure(figsize=(6, 1.1 + 0.4 * len(names)), layout="constrained")
    axis = figure.subplots()
    bars = axis.barh(names, [scores[name] for name in names], color="tab:orange")
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.axvline(line[1], color="black", linestyle="--", linewidth=1)
    axis.text(line[1], 1.01, f" {line[0]} {line[1]:.2f}", transform=axis.get_xaxis_transform(), fontsize=9)
    axis.set(xlabel=label, xlim=(0, top))
    axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
