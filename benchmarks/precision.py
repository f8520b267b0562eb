"""May the embedded model run in bfloat16? The gate of lower precision, on lesions that taught its network nothing.

    DERMLENS_DATA=/path/to/data python benchmarks/precision.py [--precision bf16]

The same images of the calibrate and the test role through the float32 graph and the one at lower precision, with the
calibration that was fitted on the float32 outputs of the calibrate role, by the gate that `refit --precision auto` runs
on the calibrate role alone. Also says which images changed (their margin between the two most probable classes), and
what the time is worth.
"""

from __future__ import annotations

import argparse

import numpy as np
from embedded import embedded_roles
from measure import in_turn, save, spread, times_faster
from rich.console import Console

from dermlens.bundle.bundle import MODELS_DIR, Bundle, load_bundle
from dermlens.bundle.decision import decide, probabilities
from dermlens.evaluation.precision_gate import all_logits, compare
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.training.views import plain_view


def margins(full: np.ndarray, low: np.ndarray, bundle: Bundle) -> dict[str, float]:
    """How near the second diagnosis is to the first, by the weights that decide, everywhere and where they differ."""
    shares = [probabilities(logits, bundle.calibration) for logits in (full, low)]
    one, other = (decide(share, bundle.calibration, bundle.decision_rule) for share in shares)
    weighed = np.sort(shares[0] / (np.array(bundle.calibration.prior) * np.exp(bundle.calibration.bias)), axis=1)
    margin = weighed[:, -2] / weighed[:, -1]
    changed = margin[one != other]
    return {
        "second score over first, median of all images": float(np.median(margin)),
        "second score over first, lowest where the decision changed": float(changed.min()) if len(changed) else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "f16"])
    options = parser.parse_args()
    console = Console(stderr=True, width=120)
    bundle = load_bundle(MODELS_DIR / "default", float32=True)
    roles = embedded_roles(bundle, console)
    held = [roles[role] for role in ("calibrate", "test")]
    records = [record for role in held for record in role.records]
    truth = np.concatenate([role.y_true for role in held])
    lesions = np.concatenate([role.lesions for role in held])
    graphs = {name: Runtime(bundle.graph_path, precision=name) for name in ("f32", options.precision)}
    (full, low), kept = all_logits(list(graphs.values()), bundle.input_spec, records, console)
    truth, lesions, own = truth[kept], lesions[kept], bundle.calibration
    found = compare(truth, lesions, (full, low), (own, own), bundle.decision_rule)
    found |= margins(full, low, bundle)
    many = np.stack([plain_view(record, bundle.input_spec) for record in records[:BATCH]])
    one = many[:1]
    for name, batch in (("one image", one), (f"batch of {BATCH}", many)):
        took = in_turn({key: (lambda r=graph, x=batch: r.run(x)) for key, graph in graphs.items()})
        found[f"{name}: f32 / {options.precision}, time"] = times_faster(took[options.precision], took["f32"])
        found[f"{name}, f32, ms"] = spread(took["f32"])
    save("precision", {}, found)


if __name__ == "__main__":
    main()
