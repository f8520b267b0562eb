"""What a new embedded model gains over the ones before: bundles of one split, on the same test lesions, in pairs.

    python benchmarks/versions.py --data DATA --before BUNDLE [BUNDLE ...] [--fold RUN]
                                  [--out benchmarks/results] [--page docs/accuracy.md]

An earlier bundle comes out of the history: `git archive COMMIT src/dermlens/models/default | tar -x -C DIR`. Each
answers as it does in service, with its own input, calibration and decision rule; no weight, epoch, calibration or
threshold of any of them was chosen on the test role. A bundle that had another split is refused, since it may have
learned from these images.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from embedded import embedded_roles, network_cells, network_figures
from folds import markdown, write  # both beside this file
from rich.console import Console

from dermlens.bundle.bundle import MODELS_DIR, Bundle, load_bundle
from dermlens.bundle.decision import decide, probabilities
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.fit_trust import Labelled, look
from dermlens.inference.runtime import Runtime

ROLES, HASHES = ("train", "select", "calibrate", "test"), "content_hashes"


def figures(bundle: Bundle, test: Labelled, console: Console) -> dict[str, Any]:
    """Score a bundle as it is served; `decision` (n,) is left out of the report."""
    what = f"version {bundle.version}"
    logits = look(bundle, Runtime(bundle.graph_path), test, console, what).logits
    shares = probabilities(logits, bundle.calibration)
    decision = decide(shares, bundle.calibration, bundle.decision_rule)
    return network_figures(test, shares, decision, list(bundle.codes))


def seen_in(role: str, bundle: Bundle, key: str) -> set[str]:
    """Return the content hashes, or the lesion ids, of a role of a bundle."""
    seen = json.loads((bundle.folder / "seen.json").read_text(encoding="utf-8"))
    return set(seen[role][key])


def shared(bundle: Bundle, run: Path) -> dict[str, list[int]]:
    """Return role of a run -> its lesions that are in the test role of the bundle, and all its lesions."""
    known = seen_in("test", bundle, "lesion_ids")
    of_role: dict[str, set[str]] = {}
    with (run / "split.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["lesion_id"]:
                of_role.setdefault(row["role"], set()).add(row["lesion_id"])
    return {role: [len(known & of_role[role]), len(of_role[role])] for role in ROLES}


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the table, a row a version."""
    header = ["embedded model", "balanced accuracy", "newest minus it, in pairs", "accuracy", "AUC", "melanoma AUC"]
    header += ["melanoma sensitivity", "at 90 % specificity", "log loss", "ECE"]
    rows = [
        [
            *network_cells(version, row, "newest_minus_it"),
            row["melanoma"]["sensitivity_at_90_specificity"],
            f"{row['log_loss']:.3f}",
            row["ece"],
        ]
        for version, row in found["versions"].items()
    ]
    table = [f"{found['images']} test images of {found['lesions']} lesions.", "", *markdown(header, rows)]
    if "shared_with_fold" not in found:
        return table
    parts = ", ".join(f"{role} {both} of {every}" for role, (both, every) in found["shared_with_fold"].items())
    return [*table, "", f"Lesions of `{found['fold']}` that are in this test role, by their role there: {parts}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DERMLENS_DATA"))
    parser.add_argument("--before", type=Path, nargs="+", required=True)
    parser.add_argument("--fold", type=Path, help="a run of accuracy.py: how many lesions of its roles are tested here")
    parser.add_argument("--out", type=Path, default=Path("runs/versions"))
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    console = Console(stderr=True, width=120)
    newest, *before = (load_bundle(path) for path in (MODELS_DIR / "default", *options.before))
    test = embedded_roles(newest, console, options.data)["test"]
    rows, decided = {}, {}
    for bundle in (newest, *before):
        if bundle.version in rows:
            raise SystemExit(f"Two of the bundles are version {bundle.version}. Name others.")
        if seen_in("test", bundle, HASHES) != seen_in("test", newest, HASHES):
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
    if options.fold:
        found |= {
            "fold": f"{options.fold.parent.name}, {options.fold.name}",
            "shared_with_fold": shared(newest, options.fold),
        }
    write(options, "versions", found, lines(found), None)


if __name__ == "__main__":
    main()
