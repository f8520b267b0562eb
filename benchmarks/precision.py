"""May the embedded model run in bfloat16? The gate of lower precision, on lesions that taught it nothing.

    DERMLENS_DATA=/path/to/data python benchmarks/precision.py [--precision bf16]

The same images of the calibrate and the test role through the float32 graph and the one at lower precision, with the
same calibration. A lower precision passes when decisions agree on at least 99 % of the images, the 99th percentile of
the change in probability is at most 0.05, and balanced accuracy and ECE move within their 95 % intervals. Also says
which images changed (their margin between the two most probable classes), and what the time is worth.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from embedded import embedded_roles
from measure import in_turn, save, spread, times_faster
from rich.console import Console

from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.inference.bundle import MODELS_DIR, load_bundle
from dermlens.inference.decision import decide, probabilities
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.reporting.progress import track
from dermlens.training.pipeline import plain_view

AGREEMENT, CHANGE = 0.99, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "f16"])
    options = parser.parse_args()
    console = Console(stderr=True, width=120)
    bundle = load_bundle(MODELS_DIR / "default")
    roles = embedded_roles(bundle, console)
    held = [roles[role] for role in ("calibrate", "test")]
    records = [record for role in held for record in role.records]
    truth = np.concatenate([role.y_true for role in held])
    lesions = np.concatenate([role.lesions for role in held])
    graphs = {name: Runtime(bundle.graph_path, precision=name) for name in ("f32", options.precision)}
    logits: dict[str, list[np.ndarray]] = {name: [] for name in graphs}
    with ThreadPoolExecutor() as pool, track("Held-out images", len(records), console) as advance:
        for start in range(0, len(records), BATCH):
            part = records[start : start + BATCH]
            pixels = np.stack(list(pool.map(lambda record: plain_view(record, bundle.input_spec), part)))
            for name, runtime in graphs.items():
                logits[name].append(runtime.run(pixels).logits)
            advance(len(part))
    full, low = (probabilities(np.concatenate(logits[name]), bundle.calibration) for name in graphs)
    decided = [decide(shares, bundle.calibration, bundle.decision_rule) for shares in (full, low)]
    changed = decided[0] != decided[1]
    weighed = np.sort(full / (np.array(bundle.calibration.prior) * np.exp(bundle.calibration.bias)), axis=1)
    margin = weighed[:, -2] / weighed[:, -1]
    change = np.abs(full - low).max(axis=1)
    gain = paired_difference(truth, decided[1], decided[0], lesions)
    confidences = [metrics.expected_calibration_error(truth, shares) for shares in (full, low)]
    one, many = pixels[:1], np.repeat(pixels[:1], BATCH, axis=0)
    found = {
        "images": len(truth),
        "lesions": len(np.unique(lesions)),
        "agreement": float(1 - changed.mean()),
        "change of probability, 99th percentile": float(np.percentile(change, 99)),
        "largest change of probability": float(change.max()),
        "balanced accuracy, difference": gain["value"],
        "balanced accuracy, difference, low": gain["low"],
        "balanced accuracy, difference, high": gain["high"],
        "ECE f32": confidences[0],
        f"ECE {options.precision}": confidences[1],
        "second score over first, median of all images": float(np.median(margin)),
        "second score over first, lowest where the decision changed": float(margin[changed].min())
        if any(changed)
        else 0.0,
    }
    passed = found["agreement"] >= AGREEMENT and found["change of probability, 99th percentile"] <= CHANGE
    found["passed"] = bool(passed and gain["low"] <= 0 <= gain["high"])
    for name, batch in (("one image", one), (f"batch of {BATCH}", many)):
        took = in_turn({key: (lambda r=graph, x=batch: r.run(x)) for key, graph in graphs.items()})
        found[f"{name}: f32 / {options.precision}, time"] = times_faster(took[options.precision], took["f32"])
        found[f"{name}, f32, ms"] = spread(took["f32"])
    save("precision", {}, found)


if __name__ == "__main__":
    main()
