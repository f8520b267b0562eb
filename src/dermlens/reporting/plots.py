"""Plots of a run and of an audit. Matplotlib is imported inside, since the light core must not need it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
    axis.legend(frameon=False, ncols=len(splits), loc="lower right", bbox_to_anchor=(1, 1))
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


def rates_png(rates: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> bytes:
    """Draw shares with intervals, a panel for each name, as PNG bytes; `rates[name][class]` is (share, low, high)."""
    from matplotlib.figure import Figure

    classes = sorted({code for row in rates.values() for code in row}, reverse=True)
    rows, columns = (len(rates) + 1) // 2, min(2, len(rates))
    figure = Figure(figsize=(6, rows * (0.9 + 0.22 * len(classes))), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axis in panels[len(rates) :]:
        axis.set_axis_off()
    for axis, (name, row) in zip(panels, rates.items(), strict=False):
        for place, code in enumerate(classes):
            if code in row:
                share, low, high = row[code]
                axis.plot([low, high], [place, place], color="tab:orange", linewidth=3, alpha=0.5)
                axis.plot(share, place, "o", color="tab:orange")
        axis.set(title=name, yticks=range(len(classes)), yticklabels=classes)
        axis.set_xlim(0, max(0.1, 1.1 * max(high for _, _, high in row.values())))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
