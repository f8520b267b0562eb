"""What status, sets, referral, novelty and quality add to the time of one prediction, in milliseconds.

    python benchmarks/trust_cost.py [--repeats 300]

One example image, the embedded model, float32, two threads; medians. The parts of a prediction are timed one after
another in turns, so that other work on the machine meets all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from dermlens.bundle.bundle import MODELS_DIR, load_bundle
from dermlens.bundle.decision import decide, probabilities
from dermlens.data.images import load_image
from dermlens.inference.judge import judge
from dermlens.inference.runtime import Runtime

IMAGE = Path(__file__).resolve().parents[1] / "examples" / "images" / "MEL_ISIC_0000029.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300)
    options = parser.parse_args()
    bundle = load_bundle(MODELS_DIR / "default")
    runtime = Runtime(bundle.graph_path, threads=2)
    data = IMAGE.read_bytes()
    pixels = load_image(data, bundle.input_spec)[None]
    outputs = runtime.run(pixels)
    probability = probabilities(outputs.logits, bundle.calibration)
    decision = decide(probability, bundle.calibration, bundle.decision_rule)
    parts: dict[str, Callable[[], object]] = {
        "read and frame": lambda: load_image(data, bundle.input_spec),
        "network": lambda: runtime.run(pixels),
        "probabilities and decision": lambda: decide(
            probabilities(outputs.logits, bundle.calibration), bundle.calibration, bundle.decision_rule
        ),
        "status, set, referral, novelty, quality": lambda: judge(bundle, pixels, outputs, probability, decision),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(options.repeats):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            times[name].append((time.perf_counter() - start) * 1000)
    medians = {name: statistics.median(values) for name, values in times.items()}
    *before, added = medians.values()
    for name, value in medians.items():
        print(f"{name:40} {value:6.2f} ms")
    print(f"added to the rest: {added / sum(before):.1%}")


if __name__ == "__main__":
    main()
