"""Is another recipe better for the embedded model? Asked of the select and calibrate lesions alone, in pairs.

    python benchmarks/choice.py --data DATA --others NAME=BUNDLE [NAME=BUNDLE ...]
        [--onto benchmarks/results/choice.json] [--out benchmarks/results] [--page docs/accuracy.md]

The test role says how good the embedded model is; a recipe that was chosen by it would look better than it is. So this
is where one is chosen: bundles of the same four roles (`python -m scripts.default_model train --recipe FILE`), each
compared with the embedded model. The temperature for one of the two roles is fitted on the other, without biases, and
each bundle decides by its own rule. Calibrate also stands alone, since select has chosen the epoch of each network. An
interval is over lesions: how far the same recipe moves from one training to the next is not in it. A bundle that had
another split is refused. `--onto` keeps the rows of an earlier table with the same embedded model.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from embedded import embedded_roles
from folds import RESAMPLES, markdown, mean_figure, write  # all beside this file
from rich.console import Console
from versions import HASHES, ROLES, seen_in

from dermlens.bundle.bundle import MODELS_DIR, Bundle, load_bundle
from dermlens.bundle.decision import decide, probabilities
from dermlens.errors import BundleError
from dermlens.evaluation.bootstrap import lesion_index, paired_difference, resample_weights
from dermlens.evaluation.calibration import fit_calibration
from dermlens.evaluation.fit_trust import Labelled, look
from dermlens.evaluation.metrics import balanced_accuracy_score, log_errors, macro_auc_score, roc_auc_score
from dermlens.inference.runtime import Runtime

CHOOSING = ("select", "calibrate")
BOTH, ALONE = "select and calibrate", "calibrate"


@dataclass(frozen=True)
class Told:
    """What a bundle says of some images: losses (n,) in nats, probability (n, classes), decision (n,)."""

    loss: np.ndarray
    probability: np.ndarray
    decision: np.ndarray

    def part(self, rows: np.ndarray) -> Told:
        return Told(self.loss[rows], self.probability[rows], self.decision[rows])


def told(bundle: Bundle, logits: Mapping[str, np.ndarray], roles: Mapping[str, Labelled]) -> Told:
    """Calibrate each of the two roles with the other's temperature and decide as the bundle does."""
    shares, decided = [], []
    for role, other in (CHOOSING, CHOOSING[::-1]):
        calibration = fit_calibration(
            logits[other],
            roles[other].y_true,
            roles[other].lesions.tolist(),
            prior=bundle.calibration.prior,
            training_prior=bundle.calibration.training_prior,
        )
        shares.append(probabilities(logits[role], calibration))
        decided.append(decide(shares[-1], calibration, bundle.decision_rule))
    probability = np.concatenate(shares)
    return Told(log_errors(joined(roles, "y_true"), probability), probability, np.concatenate(decided))


def joined(roles: Mapping[str, Labelled], key: str) -> np.ndarray:
    """Return the classes or the lesions of both roles, in the order of `told`."""
    return np.concatenate([np.asarray(getattr(roles[role], key)) for role in CHOOSING])


def row_of(own: Told, base: Told | None, truth: np.ndarray, lesions: np.ndarray, melanoma: int) -> dict[str, Any]:
    """Return the figures of a network; its log loss and balanced accuracy also less those of `base`, in pairs."""
    row: dict[str, Any] = {
        "log_loss": float(own.loss.mean()),
        "balanced_accuracy": float(balanced_accuracy_score(truth, own.decision)),
        "accuracy": float((own.decision == truth).mean()),
        "macro_auc": macro_auc_score(truth, own.probability),
        "melanoma_auc": roc_auc_score(truth == melanoma, own.probability[:, melanoma]),
    }
    if base is not None:
        row["log_loss_minus_embedded"] = mean_difference(own.loss - base.loss, truth, lesions)
        row["minus_embedded"] = paired_difference(truth, own.decision, base.decision, lesions.tolist())
    return row


def mean_difference(values: np.ndarray, truth: np.ndarray, lesions: np.ndarray) -> dict[str, Any]:
    """Return the mean of (n,) values with its interval over lesions."""
    index = lesion_index(lesions.tolist(), len(values))
    drawn = resample_weights(truth, index, resamples=RESAMPLES, seed=0)
    return mean_figure(values, np.concatenate([np.ones((1, len(values))), *drawn]))


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the table, a row a network and role."""
    header = ["network", "lesions", "log loss", "minus the embedded", "balanced accuracy", "minus the embedded"]
    header += ["accuracy", "AUC", "melanoma AUC", "minutes"]
    rows = []
    for name, network in found["networks"].items():
        for role, row in network["roles"].items():
            cells = [name if role == BOTH else "", role, f"{row['log_loss']:.3f}"]
            cells += [row.get("log_loss_minus_embedded", ""), f"{row['balanced_accuracy']:.3f}"]
            cells += [row.get("minus_embedded", "")]
            cells += [f"{row[key]:.3f}" for key in ("accuracy", "macro_auc", "melanoma_auc")]
            rows.append([*cells, f"{network['minutes']:.0f}" if role == BOTH else ""])
    parts = ", ".join(f"{role} {images} images of {lesions}" for role, (images, lesions) in found["lesions"].items())
    return [f"Lesions: {parts}.", "", *markdown(header, rows)]


def earlier_rows(path: Path | None, model: Mapping[str, str]) -> dict[str, Any]:
    """Return the networks of an earlier table, which must compare with the same embedded model."""
    if path is None or not path.is_file():
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if earlier["model"] != model:
        raise SystemExit(f"{path} compares with another embedded model. Leave --onto out.")
    return dict(earlier["networks"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DERMLENS_DATA"))
    parser.add_argument("--others", nargs="+", required=True, metavar="NAME=BUNDLE", help="NAME is what the table says")
    parser.add_argument("--onto", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/choice"))
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if not all("=" in given for given in options.others):
        raise SystemExit("Give each bundle a name in the table: --others 'rate 4e-4=runs/rate/bundle'.")
    console = Console(stderr=True, width=120)
    embedded = load_bundle(MODELS_DIR / "default")
    bundles = {f"embedded, {embedded.version}": embedded}
    try:
        bundles |= {name: load_bundle(Path(path)) for name, path in (given.split("=", 1) for given in options.others)}
    except BundleError as error:
        raise SystemExit(str(error)) from None
    for name, bundle in bundles.items():
        if any(seen_in(role, bundle, HASHES) != seen_in(role, embedded, HASHES) for role in ROLES):
            raise SystemExit(f"{name} had another split than the embedded model: these two cannot be compared.")
    model = {"name": embedded.name, "version": embedded.version, "sha256": embedded.sha256}
    earlier = earlier_rows(options.onto, model)
    roles = embedded_roles(embedded, console, options.data)
    truth, lesions = joined(roles, "y_true"), joined(roles, "lesions")
    rows_of = {BOTH: np.arange(len(truth)), ALONE: np.arange(len(roles["select"].y_true), len(truth))}
    networks: dict[str, Any] = {}
    base = None
    for name, bundle in bundles.items():
        runtime = Runtime(bundle.graph_path)
        own = told(bundle, {role: look(bundle, runtime, roles[role], console, name).logits for role in CHOOSING}, roles)
        networks[name] = {"minutes": bundle.card["training"]["minutes"], "roles": {}}
        for role, rows in rows_of.items():
            other = base.part(rows) if base else None
            figures = row_of(own.part(rows), other, truth[rows], lesions[rows], bundle.codes.index("MEL"))
            networks[name]["roles"][role] = figures
        base = base or own
    networks |= {name: row for name, row in earlier.items() if name not in networks}
    counts = {role: [len(rows), len(np.unique(lesions[rows]))] for role, rows in rows_of.items()}
    found = {"model": model, "lesions": counts, "networks": networks}
    write(options, "choice", found, lines(found), None)


if __name__ == "__main__":
    main()
