"""Draw where the time goes, of `predict_many` by thread, or of a finished `dermlens train` by stage.

    python benchmarks/timeline.py [--count 64] [--out docs/timeline_predict.svg]
    python benchmarks/timeline.py --train RUN [--out docs/timeline_train.svg]

A training is read from its run folder: each stage ends when it wrote its last file. So the folder must be where the
run left it, and the run must not have been stopped in between.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from many_images import images

ENDS = (
    ("read, audit, split", "seen.json"),
    ("frozen features, linear probe", "cache/frozen.npz"),
    ("head", "logs/head/*"),
    ("trunk features of all views", "cache/*/features.npy"),
    ("fine-tune", "model.keras"),
    ("export, outputs, calibrate, test", "bundle/graph.xml"),
    ("limits, sets, nearest examples", "bundle/bundle.json"),
    ("tables and plots", "history.png"),
)
"""Stages, and what each of them writes last."""

COLOURS = {"read, decode, resize": "#4f8fba", "network": "#c65d3b", "calibrate, judge": "#7a9a54"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--train", type=Path, metavar="RUN", help="the run folder of a training that is finished")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.train:
        draw_training(options.train, options.out or Path("docs/timeline_train.svg"))
        return
    out = options.out or Path("docs/timeline_predict.svg")
    from dermlens import Predictor

    predictor = Predictor()
    spans: list[tuple[str, str, float, float]] = []

    def watched(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = call(*args, **kwargs)
            spans.append((threading.current_thread().name, stage, start, time.perf_counter()))
            return result

        return timed

    with tempfile.TemporaryDirectory() as folder:
        raws, paths = images(), []
        for number in range(options.count):
            paths.append(Path(folder) / f"{number}.jpg")
            paths[-1].write_bytes(raws[number % len(raws)])
        list(predictor.predict_many(paths))
        predictor._load = watched("read, decode, resize", predictor._load)  # type: ignore[method-assign]
        runtime, classify = predictor._runtime, predictor._classify
        runtime.run_beside = watched("network", runtime.run_beside)  # type: ignore[method-assign]
        predictor._classify = watched("calibrate, judge", classify)  # type: ignore[method-assign]
        list(predictor.predict_many(paths))
    draw(spans, out, options.count)


def stages(run: Path) -> list[tuple[str, float]]:
    """Return the stages of a finished run with their seconds, in the order in which they came."""
    card = json.loads((run / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    ends = [(name, max(times)) for name, pattern in ENDS if (times := [p.stat().st_mtime for p in run.glob(pattern)])]
    before = dict(ends)["export, outputs, calibrate, test"] - card["training"]["minutes"] * 60
    found = []
    for name, end in ends:
        if end < before - 6:  # the minutes of a card are rounded
            raise SystemExit(
                f"{run}: {name!r} ends before the stage that leads to it; was the folder copied, or the run resumed?"
            )
        found.append((name, max(0.0, end - before)))
        before = end
    return found


def epochs(run: Path) -> list[float]:
    """Return the seconds of each epoch of fine-tuning."""
    with (run / "history.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file) if row.get("seconds")]


def draw_training(run: Path, out: Path) -> None:
    found, whole = stages(run), 0.0
    total = sum(seconds for _, seconds in found)
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(found) + 1.0))
    for row, (name, seconds) in enumerate(found):
        axes.broken_barh([(whole / 60, seconds / 60)], (row - 0.38, 0.76), color=list(COLOURS.values())[row % 3])
        beside = whole + seconds < 0.7 * total
        place = (whole + seconds) / 60 if beside else whole / 60
        words = f" {seconds:.0f} s, {seconds / total:.0%} "
        axes.text(place, row, words, va="center", ha="left" if beside else "right", fontsize=8)
        if name == "fine-tune":
            at = whole + seconds - sum(epochs(run))
            for took in epochs(run):
                axes.axvline(
                    at / 60,
                    (len(found) - row - 0.85) / len(found),
                    (len(found) - row - 0.15) / len(found),
                    color="white",
                    linewidth=0.8,
                )
                at += took
        print(f"{name:36}{seconds:8.0f} s {seconds / total:6.1%}")
        whole += seconds
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlim(0, total / 60)
    axes.set_xlabel("minutes since the start; white lines part the epochs")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    print(f"Written: {out}")


def draw(spans: list[tuple[str, str, float, float]], out: Path, count: int) -> None:
    first = min(start for _, _, start, _ in spans)
    threads = sorted({name for name, *_ in spans}, key=lambda name: (name != "MainThread", name))
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(threads) + 1.4))
    for name, stage, start, end in spans:
        bar = [((start - first) * 1000, (end - start) * 1000)]
        axes.broken_barh(bar, (threads.index(name) - 0.4, 0.8), color=COLOURS[stage], edgecolor="white", linewidth=0.4)
    axes.set_yticks(range(len(threads)), [name.replace("dermlens-answer_", "thread ") for name in threads])
    axes.invert_yaxis()
    axes.set_xlabel(f"ms since the first of {count} images of 600 x 450 px")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    axes.legend(handles, list(COLOURS), loc="upper center", bbox_to_anchor=(0.5, 1.25), ncol=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    print(f"Written: {out}")


if __name__ == "__main__":
    main()
