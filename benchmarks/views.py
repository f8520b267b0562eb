"""What test-time views are worth: the embedded model on its own test role with 1, 2, 4 and 8 views.

    DERMLENS_DATA=/path/to/data python benchmarks/views.py [--out runs/views]

Same images, same calibration and decision rule; only the number of views differs. Balanced accuracy and accuracy with
95 % intervals over lesions, each number of views beside the plain one in pairs; and ECE, since temperature was fitted
on the plain view.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from embedded import embedded_roles
from rich.console import Console

from dermlens.bundle.bundle import MODELS_DIR, load_bundle
from dermlens.bundle.decision import decide, probabilities
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.scores import score
from dermlens.inference.predictor import VIEWS, run_views
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.reporting.progress import track
from dermlens.training.views import plain_view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/views"))
    options = parser.parse_args()
    console = Console(stderr=True, width=120)
    bundle = load_bundle(MODELS_DIR / "default")
    runtime = Runtime(bundle.graph_path)
    test = embedded_roles(bundle, console)["test"]
    records, truth, groups = test.records, test.y_true, test.lesions
    logits: dict[int, list[np.ndarray]] = {views: [] for views in VIEWS}
    with ThreadPoolExecutor() as pool, track("Test images", len(records), console) as advance:
        for start in range(0, len(records), BATCH):
            part = records[start : start + BATCH]
            pixels = np.stack(list(pool.map(lambda record: plain_view(record, bundle.input_spec), part)))
            for views in VIEWS:
                logits[views].append(run_views(runtime.run, pixels, views).logits)
            advance(len(part))
    shares = {views: probabilities(np.concatenate(logits[views]), bundle.calibration) for views in VIEWS}
    decided = {views: decide(shares[views], bundle.calibration, bundle.decision_rule) for views in VIEWS}
    found = {}
    print(f"{len(records)} images of {len(np.unique(groups))} lesions.")
    print("| views | balanced accuracy | difference to 1 | accuracy | melanoma AUC | ECE |\n|---|---|---|---|---|---|")
    for views in VIEWS:
        scores = score(truth, shares[views], decided[views], groups, list(bundle.codes))
        gain = paired_difference(truth, decided[views], decided[1], groups)
        ece = metrics.expected_calibration_error(truth, shares[views])
        found[views] = {"metrics": scores, "minus_plain": gain, "ece": ece}
        cells = [scores["balanced_accuracy"], gain, scores["accuracy"], scores["per_class"]["MEL"]["auc"]]
        print(f"| {views} | " + " | ".join(f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]" for f in cells)
              + f" | {ece:.3f} |")  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    model = {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256}
    (options.out / "views.json").write_text(
        json.dumps({"model": model, "views": found}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
