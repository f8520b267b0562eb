"""What test-time views are worth: the embedded model on its test role with 1, 2, 4 and 8 views.

Same images, same calibration; only the number of views differs. Each number of views is compared in
pairs with the plain view. The calibration was fitted on the plain view.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import CONSOLE
from benchmarks.report import markdown, model_of
from benchmarks.roles import embedded_bundle, embedded_roles
from dermlens.bundle.limits import mix_weights
from dermlens.bundle.probabilities import probabilities
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.scores import score
from dermlens.inference.runtime import BATCH, VIEWS, Runtime, run_views
from dermlens.reporting.progress import track
from dermlens.training.views import plain_view


def run(*, data: Path) -> dict[str, Any]:
    """Return the figures by number of views."""
    bundle = embedded_bundle()
    runtime = Runtime(bundle.graph_path)
    test = embedded_roles(bundle, data)["test"]
    logits: dict[int, list[np.ndarray]] = {views: [] for views in VIEWS}
    with ThreadPoolExecutor() as pool, track("Test images", len(test.records), CONSOLE) as advance:
        for start in range(0, len(test.records), BATCH):
            part = test.records[start : start + BATCH]
            pixels = np.stack(list(pool.map(lambda record: plain_view(record, bundle.input_spec), part)))
            for views in VIEWS:
                logits[views].append(run_views(runtime.run, pixels, views).logits)
            advance(len(part))
    mix = bundle.case_mix
    at_mix = mix.of(bundle.codes)
    shares = {views: probabilities(np.concatenate(logits[views]), bundle.calibration, at_mix) for views in VIEWS}
    decided = {views: share.argmax(axis=1) for views, share in shares.items()}
    weights = mix_weights(test.y_true, test.lesions, at_mix)
    found = {}
    for views in VIEWS:
        scored = score(test.y_true, shares[views], decided[views], test.lesions, list(bundle.codes), mix=mix)
        found[str(views)] = {
            "balanced_accuracy": scored["balanced_accuracy"],
            "minus_plain": paired_difference(test.y_true, decided[views], decided[1], test.lesions),
            "accuracy": scored["accuracy"],
            "melanoma_auc": scored["per_class"]["MEL"]["auc"],
            "ece": metrics.expected_calibration_error(test.y_true, shares[views], weights=weights),
        }
    return {"model": model_of(bundle), "views": found}


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each number of views."""
    rows = [
        [
            views,
            row["balanced_accuracy"],
            "" if views == "1" else row["minus_plain"],
            row["accuracy"],
            row["melanoma_auc"],
            f"{row['ece']:.3f}",
        ]
        for views, row in found["views"].items()
    ]
    header = ["views", "balanced accuracy", "minus one view, paired", "accuracy", "melanoma AUC", "ECE"]
    return markdown(header, rows)
