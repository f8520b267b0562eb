"""One image from a cold start: `dermlens predict` in a fresh process against importing TensorFlow in one.

    python benchmarks/cold_predict.py [--repeats 10] [--image FILE]

Prints medians with their spread, peak resident memory, and the ratio to what a Keras program pays before its first
line of work. Each pair is measured in turn, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

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


def summary(samples: list[tuple[float, float]]) -> dict[str, float]:
    seconds = sorted(s for s, _ in samples)
    return {
        "median_s": round(statistics.median(seconds), 3),
        "low_s": round(seconds[0], 3),
        "high_s": round(seconds[-1], 3),
        "peak_mb": round(statistics.median(mb for _, mb in samples), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
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
    result = {name: summary(values) for name, values in samples.items()}
    a, b = result["dermlens predict"], result["import tensorflow"]
    result["ratio"] = {"time": round(a["median_s"] / b["median_s"], 3), "memory": round(a["peak_mb"] / b["peak_mb"], 3)}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({**machine, "repeats": options.repeats, **result}, indent=1))


if __name__ == "__main__":
    main()
