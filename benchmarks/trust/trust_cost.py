"""What status, sets, advice, novelty and quality add to the time of one prediction.

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
from dermlens.bundle.bundle import limits_of
from dermlens.bundle.probabilities import probabilities
from dermlens.bundle.quality import measure
from dermlens.data.images import load_image
from dermlens.inference.judge import Scope, judge
from dermlens.inference.runtime import Runtime

ADDED = "status, set, advice, novelty, quality"
LIMITS = "limits at a new case mix, once"


def run(*, repeats: int = 300) -> dict[str, Any]:
    """Return the milliseconds of each part, and the share that is added."""
    bundle = embedded_bundle()
    runtime = Runtime(bundle.graph_path, threads=2)
    data = EXAMPLE.read_bytes()
    pixels = load_image(data, bundle.input_spec)[None]
    outputs = runtime.run(pixels)
    limits, trust = bundle.limits(bundle.case_mix), bundle.trust
    scope = Scope(bundle.codes, trust, bundle.modality)
    probability = probabilities(outputs.logits, bundle.calibration, limits.shares)[0]

    def judged() -> object:
        score = None if trust.novelty is None else trust.novelty.score(outputs.embedding).item()
        return judge(scope, limits, probability, score, measure(pixels[0]))

    parts: dict[str, Callable[[], object]] = {
        "read and frame": lambda: load_image(data, bundle.input_spec),
        "network": lambda: runtime.run(pixels),
        "probabilities": lambda: probabilities(outputs.logits, bundle.calibration, limits.shares),
        ADDED: judged,
    }
    took = in_turn(parts, repeats=repeats)
    rest = zip(*(took[name] for name in parts if name != ADDED), strict=True)
    added = [ms / sum(before) for ms, before in zip(took[ADDED], rest, strict=True)]
    once = in_turn({LIMITS: lambda: limits_of(bundle.card, bundle.lesions, bundle.case_mix)}, repeats=repeats // 10)
    ms = {name: spread(values) for name, values in {**took, **once}.items()}
    return {"ms": ms, "added": spread(added)}


def table(found: Mapping[str, Any]) -> str:
    """Return the milliseconds of each part, and the share."""
    rows = [[name, value] for name, value in found["ms"].items()]
    rows.append([f"share that '{ADDED}' adds", found["added"]])
    return markdown(["part of a prediction", "ms, median [10th, 90th percentile]"], rows, 2)
