"""One image from a cold start: `dermlens predict` in a fresh process against importing TensorFlow in one.

    python benchmarks/cold_predict.py [--repeats 20] [--image FILE]

Seconds and peak resident memory, and the ratio to what a Keras program pays before its first line of work. Each pair
is measured in turn, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from measure import REPEATS, save, spread, times_faster

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "images" / "MEL_ISIC_0000029.jpg"


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command once; return (seconds, peak resident megabytes)."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed with status {status}.")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    options = parser.parse_args()
    ours = [sys.executable, "-m", "dermlens", "predict", str(options.image), "--json"]
    theirs = [sys.executable, "-c", "import tensorflow"]
    for command in (ours, theirs):
        measure(command)  # once to warm the file cache
    samples: dict[str, list[tuple[float, float]]] = {"dermlens predict": [], "import tensorflow": []}
    for _ in range(options.repeats):
        samples["dermlens predict"].append(measure(ours))
        samples["import tensorflow"].append(measure(theirs))
    seconds, peaks = ({name: [pair[place] for pair in pairs] for name, pairs in samples.items()} for place in (0, 1))
    ratios = {
        "seconds, import tensorflow / dermlens predict": times_faster(*seconds.values()),
        "peak memory, import tensorflow / dermlens predict": times_faster(*peaks.values()),
    }
    details = {"seconds": seconds, "peak resident memory, MB": peaks}
    spreads = {what: {name: spread(values) for name, values in by.items()} for what, by in details.items()}
    save("cold_predict", ratios, {"image": options.image.name, **spreads})


if __name__ == "__main__":
    main()
