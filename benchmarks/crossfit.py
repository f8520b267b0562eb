"""Calibration and prediction sets on all lesions that taught the embedded model nothing, cross-fitted by lesion.

    DERMLENS_DATA=/path/to/data python benchmarks/crossfit.py [--folds 5] [--repeats 4] [--out DIR] [--seed 0]

The test role alone holds 12 lesions of a rare class. Here the calibrate and the test role are pooled; temperature
(biases too, where the bundle has them) and limits are fitted on all folds but one and measured on that one, so every
lesion is measured once a repeat by a fit that did not see it. Coverage is the mean over the repeats. These are not
out-of-fold predictions of several trainings: the network is one, the embedded one, which has met none of these lesions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import numpy as np
from embedded import embedded_roles
from rich.console import Console

from dermlens.bundle.bundle import MODELS_DIR, load_bundle
from dermlens.bundle.decision import decide, probabilities
from dermlens.evaluation import metrics
from dermlens.evaluation.calibration import fit_calibration
from dermlens.evaluation.conformal import LEVEL, fit_sets, wilson_interval
from dermlens.evaluation.fit_trust import look
from dermlens.inference.runtime import Runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/crossfit"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(stderr=True, width=120)
    bundle = load_bundle(MODELS_DIR / "default")
    runtime = Runtime(bundle.graph_path)
    roles = embedded_roles(bundle, console)
    samples = [look(bundle, runtime, roles[role], console, role) for role in ("calibrate", "test")]
    weights, bias = bundle.head()
    y = np.concatenate([s.y_true for s in samples])
    lesions = np.unique(np.concatenate([s.lesions for s in samples]), return_inverse=True)[1].astype(np.int64)
    logits = np.concatenate([s.embedding @ weights + bias for s in samples]).astype(np.float64)
    per_lesion = 1.0 / np.bincount(lesions)[lesions]
    held, sizes = np.zeros(len(y)), np.zeros(len(y))
    pooled = np.zeros((len(y), len(bundle.codes)))
    for repeat in range(options.repeats):
        fold = np.random.default_rng([options.seed, repeat]).integers(0, options.folds, lesions.max() + 1)[lesions]
        for number in range(options.folds):
            inside, outside = fold != number, fold == number
            calibration = fit_calibration(
                logits[inside],
                y[inside],
                lesions[inside].tolist(),
                prior=bundle.calibration.prior,
                training_prior=bundle.calibration.training_prior,
                bias=any(bundle.calibration.bias),
            )
            p = probabilities(logits, calibration)
            sets, _ = fit_sets(p[inside], y[inside], lesions[inside], calibration.prior)
            chosen = sets.apply(p[outside], calibration.prior, decide(p[outside], calibration, bundle.decision_rule))
            held[outside] += chosen[np.arange(outside.sum()), y[outside]] / options.repeats
            sizes[outside] += chosen.sum(1) / options.repeats
            pooled[outside] += p[outside] / options.repeats
    raw = probabilities(logits, msgspec.structs.replace(bundle.calibration, temperature=1.0, bias=()))

    def by_lesion(p: np.ndarray) -> float:
        confidence, correct = metrics.top_label(y, p)
        bins = metrics.equal_mass_bins(confidence)
        return float(metrics.calibration_error(confidence, correct, bins, per_lesion[None])[0])

    def row(mask: np.ndarray) -> dict[str, float]:
        share = per_lesion[mask] / per_lesion[mask].sum()
        n = len(np.unique(lesions[mask]))
        value = float(held[mask] @ share)
        low, high = wilson_interval(value, n)
        return {"lesions": n, "coverage": value, "low": low, "high": high, "mean_size": float(sizes[mask] @ share)}

    report = {
        "model": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "images": len(y),
        "folds": options.folds,
        "repeats": options.repeats,
        "seed": options.seed,
        "level": LEVEL,
        "ece_before": metrics.expected_calibration_error(y, raw),
        "ece_after": metrics.expected_calibration_error(y, pooled),
        "ece_before_each_lesion_once": by_lesion(raw),
        "ece_after_each_lesion_once": by_lesion(pooled),
        "log_loss_before": metrics.log_loss(y, raw),
        "log_loss_after": metrics.log_loss(y, pooled),
        "all": row(np.ones(len(y), bool)),
        "per_class": {code: row(y == c) for c, code in enumerate(bundle.codes)},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "crossfit.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
