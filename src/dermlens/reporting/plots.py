"""Plots of a run, an audit and an evaluation, and which epoch of a training is the best, which one of them marks.

`plot_*` draw into the Matplotlib axes that are given, or into new ones of pyplot, and return them; `*_png` give the
bytes of a picture for a page, without pyplot. Matplotlib is imported inside, since the light core must not need it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SQUARE = (5.2, 4.6)  # inches
MOST_LINES = 20  # of more classes only the median recall and the lowest are drawn


def plot_history(
    rows: Sequence[Mapping[str, float]],
    path: Path | None = None,
    axes: Sequence[Axes] | None = None,
    kept: int | None = None,
) -> tuple[Axes, Axes, Axes]:
    """Draw loss, balanced accuracy with AUC, and the recall of each class by epoch; return the three axes.

    Args:
        rows: one mapping for each epoch with `epoch`, `select_loss`, `select_balanced_accuracy`, `select_macro_auc`, a
            `select_recall_<class>` for each class and, from epoch 1 on, `train_loss`.
        path: also write a PNG there; no window is opened then.
        axes: three axes to draw into.
        kept: place of the row whose weights were kept; None takes the best by `merit`.
    """
    loss, score, recall = axes if axes is not None else _panels(3, (13, 3.8), shown=path is None)
    epochs = [row["epoch"] for row in rows]
    loss.plot(epochs, [row["select_loss"] for row in rows], marker="o", label="select")
    trained = [row for row in rows if "train_loss" in row]
    loss.plot([r["epoch"] for r in trained], [r["train_loss"] for r in trained], marker="o", label="train")
    loss.set(xlabel="epoch", ylabel="loss", title="Loss (train: with mixup and smoothed labels)")
    loss.legend(frameon=False)
    _draw_scores(score, rows, epochs, kept_epoch(rows) if kept is None else kept)
    _draw_recalls(recall, rows, epochs)
    for axis in (loss, score, recall):
        locator: Any = axis.xaxis.get_major_locator()
        locator.set_params(integer=True)
        _plain(axis)
    if path is not None:
        figure: Any = loss.figure
        figure.savefig(path, dpi=120)
    return loss, score, recall


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the rows of a run's `history.csv`; values that an epoch does not have are left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _panels(count: int, size: tuple[float, float], *, shown: bool) -> list[Axes]:
    """Return new axes side by side: of pyplot, which a notebook shows, or of a figure that only this module knows."""
    if shown:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=size, layout="constrained")
    else:
        figure = _figure(*size)
    return list(figure.subplots(1, count, squeeze=False)[0])


def _draw_scores(axis: Axes, rows: Sequence[Mapping[str, float]], epochs: Sequence[float], best: int) -> None:
    scores = [row["select_balanced_accuracy"] for row in rows]
    ranked = [row["select_macro_auc"] for row in rows]
    for values, colour, name in ((scores, "tab:green", "balanced accuracy"), (ranked, "tab:purple", "AUC")):
        axis.plot(epochs, values, marker="o", color=colour, label=name)
        axis.plot(epochs[best], values[best], marker="*", markersize=16, color=colour)
    axis.annotate(
        f"kept: {scores[best]:.3f}",
        (epochs[best], scores[best]),
        textcoords="offset points",
        xytext=(0, -18),
        ha="center",
    )
    axis.set(xlabel="epoch", ylabel="mean over the classes", title="Balanced accuracy and AUC on select")
    axis.legend(frameon=False)


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
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def classes_png(counts: Mapping[str, Mapping[str, int]]) -> bytes:
    """Draw the images of each class, stacked by split, as PNG bytes; `counts[class][split]`."""
    codes = sorted(counts, key=lambda code: sum(counts[code].values()))
    splits = sorted({split for row in counts.values() for split in row}, reverse=True)
    figure = _figure(6, 0.9 + 0.32 * len(codes))
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
    names = list(scores)[::-1]
    figure = _figure(6, 1.1 + 0.4 * len(names))
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
    classes = sorted({code for row in rates.values() for code in row}, reverse=True)
    rows, columns = (len(rates) + 1) // 2, min(2, len(rates))
    figure = _figure(6, rows * (0.9 + 0.22 * len(classes)))
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
        _plain(axis)
    return _png(figure)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def curves_png(curves: Mapping[str, Sequence[Sequence[float]]], labels: tuple[str, str], *, diagonal: bool) -> bytes:
    """Draw named curves as `plot_curves` does, as PNG bytes."""
    return _png(plot_curves(curves, labels, diagonal=diagonal, axis=_panels(1, _SQUARE, shown=False)[0]).figure)


def plot_curves(
    curves: Mapping[str, Sequence[Sequence[float]]],
    labels: tuple[str, str],
    *,
    diagonal: bool = False,
    axis: Axes | None = None,
) -> Axes:
    """Draw named curves `[x, y]` in the unit square; `diagonal` adds the line of chance."""
    axis = axis or _panels(1, _SQUARE, shown=True)[0]
    if diagonal:
        axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    for name, (x, y) in curves.items():
        bold = name.startswith(("melanoma", "malignant"))
        axis.plot(x, y, label=name, linewidth=2.2 if bold else 1.1, alpha=1.0 if bold else 0.75)
    axis.set(xlabel=labels[0], ylabel=labels[1], xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.legend(frameon=False, fontsize=8)
    _plain(axis)
    return axis


def reliability_png(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> bytes:
    """Draw calibration as `plot_reliability` does, as PNG bytes."""
    return _png(plot_reliability(before, after, axis=_panels(1, _SQUARE, shown=False)[0]).figure)


def plot_reliability(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], *, axis: Axes | None = None
) -> Axes:
    """Draw how often the model is right by how sure it is, before and after calibration.

    Args:
        before: `confidence`, `accuracy` and `images` by bin.
        after: the same after calibration.
    """
    axis = axis or _panels(1, _SQUARE, shown=True)[0]
    axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="as sure as right")
    for name, bins, style in (("before calibration", before, ":"), ("after", after, "-")):
        axis.plot(bins["confidence"], bins["accuracy"], marker="o", linestyle=style, label=name)
    axis.set(xlabel="largest probability", ylabel="share that is right", xlim=(0, 1.01), ylim=(0, 1.01))
    axis.legend(frameon=False)
    _plain(axis)
    return axis


def reliability_by_class_png(
    before: Mapping[str, Mapping[str, Sequence[float]]], after: Mapping[str, Mapping[str, Sequence[float]]]
) -> bytes:
    """Draw the calibration of each class's probability, a panel for each, as PNG bytes; bins as `plot_reliability`."""
    columns = min(4, len(after))
    rows = -(-len(after) // columns)
    figure = _figure(2.3 * columns, 2.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in panels[len(after) :]:
        axis.set_axis_off()
    for axis, (code, bins) in zip(panels, after.items(), strict=False):
        both = (before[code], ":"), (bins, "-")
        top = min(1.0, 1.1 * max(max(*each["confidence"], *each["accuracy"], 0.05) for each, _ in both))
        axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
        for each, style in both:
            axis.plot(each["confidence"], each["accuracy"], marker="o", markersize=3, linestyle=style)
        axis.set(title=code, xlim=(0, top), ylim=(0, top))
        axis.tick_params(labelsize=8)
        _plain(axis)
    return _png(figure)


def confusion_png(counts: Sequence[Sequence[int]], codes: Sequence[str]) -> bytes:
    """Draw a confusion matrix as `plot_confusion` does, as PNG bytes."""
    return _png(plot_confusion(counts, codes, axis=_panels(1, _side(codes), shown=False)[0]).figure)


def _side(codes: Sequence[str]) -> tuple[float, float]:
    side = 1.6 + 0.55 * len(codes)
    return side, side * 0.92


def plot_confusion(counts: Sequence[Sequence[int]], codes: Sequence[str], *, axis: Axes | None = None) -> Axes:
    """Draw a confusion matrix coloured by share of the true class, with the counts; rows are the true classes."""
    axis = axis or _panels(1, _side(codes), shown=True)[0]
    shares = [[n / max(1, sum(row)) for n in row] for row in counts]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, row in enumerate(counts):
        for x, n in enumerate(row):
            axis.text(
                x, y, str(n), ha="center", va="center", fontsize=8, color="white" if shares[y][x] > 0.55 else "black"
            )
    axis.set_xticks(range(len(codes)), codes, rotation=60, fontsize=8)
    axis.set_yticks(range(len(codes)), codes, fontsize=8)
    axis.set(xlabel="diagnosis given", ylabel="true diagnosis")
    return axis


def benefit_png(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Draw decision curves: net benefit by the probability from which one would act, as PNG bytes."""
    figure = _figure(5.2 * len(curves), 3.8)
    for axis, (name, curve) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        axis.plot(curve["threshold"], curve["model"], linewidth=2, label="refer as the model says")
        axis.plot(curve["threshold"], curve["everyone"], label="refer everyone")
        axis.axhline(0, color="grey", linewidth=1, label="refer nobody")
        top = max(0.02, *curve["model"])
        axis.set(xlabel="threshold", ylabel="net benefit", title=name, ylim=(-0.25 * top, 1.15 * top))
        axis.legend(frameon=False, fontsize=8)
        _plain(axis)
    return _png(figure)


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


KEPT_BY = "macro AUC, then loss"  # in the key of a run and of a search: one that began by another rule does not resume


def merit(row: Mapping[str, float]) -> tuple[float, float]:
    """Return what the epochs of a training are ranked by, high is good: the macro AUC on select, then the lower loss.

    The AUC weighs all classes alike, as balanced accuracy does, and takes every image's probability instead of its
    decision: with seven lesions of a class, one of them more or less moves balanced accuracy by points.
    """
    auc = row["select_macro_auc"]
    return (-1.0 if math.isnan(auc) else auc, -row["select_loss"])


def kept_epoch(rows: Sequence[Mapping[str, float]]) -> int:
    """Return the place of the best row, the first of equals."""
    return max(range(len(rows)), key=lambda place: merit(rows[place]))
