"""What a new embedded model gains over the ones before: bundles of one split, on the same test lesions, in pairs.

    python benchmarks/versions.py --data DATA --before BUNDLE [BUNDLE ...] [--out benchmarks/results]
                                  [--page docs/accuracy.md]

An earlier bundle comes out of the history: `git archive COMMIT src/dermlens/models/default | tar -x -C DIR`. Each
answers as it does in service, with its own input, calibration and decision rule; the test role chose nothing in any of
them. A bundle that had another split is refused, since it may have learned from these images.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from embedded import embedded_roles
from folds import markdown, write  # both beside this file
from rich.console import Console

from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.metrics import log_loss
from dermlens.evaluation.scores import score
from dermlens.evaluation.trust_fit import Labelled, look
from dermlens.inference.bundle import MODELS_DIR, Bundle, load_bundle
from dermlens.inference.decision import decide, probabilities
from dermlens.inference.runtime import Runtime


def figures(bundle: Bundle, test: Labelled, console: Console) -> dict[str, Any]:
    """Score a bundle as it is served; `decision` (n,) is left out of the report."""
    what = f"version {bundle.version}"
    logits = look(bundle, Runtime(bundle.graph_path, precision=bundle.precision), test, console, what).logits
    shares = probabilities(logits, bundle.calibration)
    decision = decide(shares, bundle.calibration, bundle.decision_rule)
    scored = score(test.y_true, shares, decision, test.lesions.tolist(), list(bundle.codes))
    keys = ("auc", "sensitivity", "sensitivity_at_90_specificity")
    return {
        **{key: scored[key] for key in ("balanced_accuracy", "accuracy", "macro_auc", "ece")},
        "melanoma": {key: scored["per_class"]["MEL"][key] for key in keys},
        "log_loss": log_loss(test.y_true, shares),
        "decision": decision,
    }


def tested(bundle: Bundle) -> set[str]:
    """Return the content hashes of a bundle's test role."""
    seen = json.loads((bundle.folder / "seen.json").read_text(encoding="utf-8"))
    return set(seen["test"]["content_hashes"])


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the table, a row a version."""
    header = ["embedded model", "balanced accuracy", "newest minus it, in pairs", "accuracy", "AUC", "melanoma AUC"]
    header += ["melanoma sensitivity", "at 90 % specificity", "log loss", "ECE"]
    rows = [
        [
            version,
            row["balanced_accuracy"],
            row.get("newest_minus_it", ""),
            row["accuracy"],
            row["macro_auc"],
            *(row["melanoma"][key] for key in ("auc", "sensitivity", "sensitivity_at_90_specificity")),
            f"{row['log_loss']:.3f}",
            row["ece"],
        ]
        for version, row in found["versions"].items()
    ]
    return [f"{found['images']} test images of {found['lesions']} lesions.", "", *markdown(header, rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DERMLENS_DATA"))
    parser.add_argument("--before", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/versions"))
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if options.data:
        os.environ["DERMLENS_DATA"] = str(options.data)  # `embedded_roles` reads it
    console = Console(stderr=True, width=120)
    newest, *before = (load_bundle(path) for path in (MODELS_DIR / "default", *options.before))
    test = embedded_roles(newest, console)["test"]
    rows, decided = {}, {}
    for bundle in (newest, *before):
        if tested(bundle) != tested(newest):
            raise SystemExit(f"Version {bundle.version} was tested on other images: these two cannot be compared.")
        rows[bundle.version] = figures(bundle, test, console)
        decided[bundle.version] = rows[bundle.version].pop("decision")
    for version in list(rows)[1:]:
        rows[version]["newest_minus_it"] = paired_difference(
            test.y_true, decided[newest.version], decided[version], test.lesions.tolist()
        )
    found = {
        "model": {"name": newest.name, "version": newest.version, "sha256": newest.sha256},
        "images": len(test.y_true),
        "lesions": len(np.unique(test.lesions)),
        "versions": rows,
    }
    write(options, "versions", found, lines(found), None)


if __name__ == "__main__":
    main()
