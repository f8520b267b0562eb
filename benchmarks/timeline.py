"""Draw where the time of `predict_many` goes: which thread reads, decodes, runs the network or decides, and when.

python benchmarks/timeline.py [--count 48] [--out docs/timeline_predict.svg]
"""

from __future__ import annotations

import argparse
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

COLOURS = {"read, decode, resize": "#4f8fba", "network": "#c65d3b", "calibrate, judge": "#7a9a54"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("docs/timeline_predict.svg"))
    options = parser.parse_args()
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
    draw(spans, options.out, options.count)


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
