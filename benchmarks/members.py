"""What the mean of several trainings' weights is worth: each member of a run, their mean, the mean of their answers.

    python benchmarks/members.py --data DATA --run runs/default [--members DIR] [--before BUNDLE]
                                 [--out benchmarks/results] [--page docs/accuracy.md]

RUN was trained by `python -m dermlens.training.default_model` with the recipe setting `members`; its members' weights
stand in RUN/members. Each network is calibrated on the calibrate lesions and scored on those of the test role, which
chose nothing: what is kept, the mean of the weights or one member, was decided on the select role. The mean of answers
costs a pass for each member and is what the mean of weights is to come near.
`--before` names an earlier bundle of the same split, so that both are compared on the same lesions.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from embedded import network_cells, network_figures
from folds import markdown, mean_logits, write  # beside this file
from rich.console import Console

from dermlens.bundle.bundle import Bundle, load_bundle
from dermlens.bundle.decision import decide, probabilities
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.calibration import choose_calibration
from dermlens.evaluation.fit_trust import Labelled
from dermlens.evaluation.metrics import log_loss
from dermlens.inference.runtime import Runtime

KEPT, MEAN, ANSWERS, BEFORE = " (kept)", "mean of the weights", "mean of the answers", "the bundle before"
ROLES = ("calibrate", "test")


def member_logits(
    run: Path, folder: Path, roles: Mapping[str, Labelled], bundle: Bundle, console: Console
) -> dict[str, dict[str, np.ndarray]]:
    """Return network -> role -> logits (n, classes) of each member and of the mean of their weights."""
    from dermlens.inference.runtime import batch_for, compile_graph
    from dermlens.networks.openvino import to_openvino
    from dermlens.training.checkpoint import assign, values_of
    from dermlens.training.features import plain_outputs
    from dermlens.training.members import Kept, mean_of
    from dermlens.training.outputs import load_keras
    from dermlens.training.recipe import read_state

    whole = load_keras(run)
    part = whole.get_layer("classifier")
    networks, chosen = {}, values_of(part.weights)
    kept = Kept(folder, read_state(run)["key"])
    for number in range(int(bundle.card["recipe"]["members"])):
        member = kept.read(str(number))
        if member is None:
            raise SystemExit(f"{folder} does not hold member {number + 1} of this run.")
        networks[f"member {number + 1}"] = member[0]
    networks[MEAN] = mean_of(list(networks.values()))
    networks = {name + KEPT * _same(weights, chosen): weights for name, weights in networks.items()}
    found = {}
    for name, weights in networks.items():
        assign(part.weights, weights)
        compiled = compile_graph(to_openvino(whole), batch=batch_for(bundle.input_spec.size_px))
        found[name] = {
            role: plain_outputs(
                compiled, roles[role].records, bundle.input_spec, output=0, console=console, what=f"{name}, {role}"
            )
            for role in ROLES
        }
    members = [logits for name, logits in found.items() if not name.startswith(MEAN)]
    found[ANSWERS] = {role: mean_logits(np.stack([logits[role] for logits in members])) for role in ROLES}
    return found


def _same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def bundle_logits(bundle: Bundle, roles: Mapping[str, Labelled], console: Console) -> dict[str, np.ndarray]:
    from dermlens.evaluation.fit_trust import look

    runtime = Runtime(bundle.graph_path)
    return {role: look(bundle, runtime, roles[role], console, f"before, {role}").logits for role in ROLES}


def figures(logits: Mapping[str, np.ndarray], roles: Mapping[str, Labelled], bundle: Bundle) -> dict[str, Any]:
    """Calibrate on one role, score on the other; `decision` (n,) is left out of the report."""
    known, test = roles["calibrate"], roles["test"]
    at = {"prior": bundle.calibration.prior, "training_prior": bundle.calibration.training_prior}
    calibration, _ = choose_calibration(logits["calibrate"], known.y_true, known.lesions.tolist(), **at, seed=0)
    shares = {role: probabilities(logits[role], calibration) for role in ROLES}
    decision = decide(shares["test"], calibration, bundle.decision_rule)
    return {
        **network_figures(test, shares["test"], decision, list(bundle.codes)),
        "log_loss_calibrate": log_loss(known.y_true, shares["calibrate"]),
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the table, a row a network."""
    header = ["network", "balanced accuracy", "kept one minus it, in pairs", "accuracy", "AUC"]
    header += ["melanoma AUC", "melanoma sensitivity", "log loss", "log loss, calibrate", "ECE"]
    rows = [
        [
            *network_cells(name, row, "kept_minus_it"),
            f"{row['log_loss']:.3f}",
            f"{row['log_loss_calibrate']:.3f}",
            row["ece"],
        ]
        for name, row in found["networks"].items()
    ]
    return [f"{found['images']} test images of {found['lesions']} lesions.", "", *markdown(header, rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DERMLENS_DATA"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--members", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/members"))
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if options.data is None:
        raise SystemExit("Name the data folder with --data or DERMLENS_DATA.")
    console = Console(stderr=True, width=120)
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    from dermlens.training.default_model import default_dataset
    from dermlens.training.refit import roles_of

    bundle = load_bundle(options.run / "bundle")
    roles = roles_of(bundle, default_dataset(Path(options.data), console), console)
    logits = member_logits(options.run, options.members or options.run / "members", roles, bundle, console)
    if options.before:
        logits[BEFORE] = bundle_logits(load_bundle(options.before), roles, console)
    test = roles["test"]
    rows = {name: figures(each, roles, bundle) for name, each in logits.items()}
    decided = {name: row.pop("decision") for name, row in rows.items()}
    (kept,) = [name for name in rows if name.endswith(KEPT)]
    for name in rows:
        if name != kept:
            rows[name]["kept_minus_it"] = paired_difference(
                test.y_true, decided[kept], decided[name], test.lesions.tolist()
            )
    found = {
        "model": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "images": len(test.y_true),
        "lesions": len(np.unique(test.lesions)),
        "networks": rows,
    }
    write(options, "members", found, lines(found), None)


if __name__ == "__main__":
    main()
