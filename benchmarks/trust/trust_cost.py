"""What status, sets, referral, novelty and quality add to the time of one prediction.

One example image, the embedded model, float32, two threads; medians. The parts of a prediction are timed in turn, so
that other work on the machine meets all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import EXAMPLE
from benchmarks.report import markdown
from benchmarks.roles import embedded_bundle
from benchmarks.timing import in_turn, spread
from dermlens.bundle.decision import decide, probabilities
from dermlens.data.images import load_image
from dermlens.inference.judge import judge
from dermlens.inference.runtime import Runtime

ADDED = "status, set, referral, novelty, quality"


def run(*, repeats: int = 300) -> dict[str, Any]:
    """Return the milliseconds of each part, and the share that is added."""
    bundle = embedded_bundle()
    runtime = Runtime(bundle.graph_path, threads=2)
    data = EXAMPLE.read_bytes()
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
        ADDED: lambda: judge(bundle, pixels, outputs, probability, decision),
    }
    took = in_turn(parts, repeats=repeats)
    rest = zip(*(took[name] for name in parts if name != ADDED), strict=True)
    added = [ms / sum(before) for ms, before in zip(took[ADDED], rest, strict=True)]
    return {"ms": {name: spread(values) for name, values in took.items()}, "added": spread(added)}


def table(found: Mapping[str, Any]) -> str:
    """Return the milliseconds of each part, and the share."""
    rows = [[name, value] for name, value in found["ms"].items()]
    rows.append(["its share of the parts before it", found["added"]])
    return markdown(["part of a prediction", "ms, median [10th, 90th percentile]"], rows, 2)
