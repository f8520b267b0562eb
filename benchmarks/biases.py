"""What a bias for each class does to probabilities and to decisions, on lesions that neither trained nor were tested.

    DERMLENS_DATA=/path/to/data python benchmarks/biases.py [--model default] [--repeats 20] [--out DIR] [--seed 0]

First on the calibrate role, cross-fitted by lesion: temperature alone and with biases, fitted on four fifths of the
lesions and measured on the rest. Then on the select role, with what the whole calibrate role gives. Three decisions by
the balanced rule: temperature alone; with biases, taken out of the decision (what `decide` does); with biases, left in.
Each lesion counts once. Differences in pairs, 95 % intervals from a bootstrap over lesions within their class. The test
role is not looked at: this is what the decision rule was chosen by. `--model` also takes a run folder of
benchmarks/accuracy.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from embedded import embedded_roles
from rich.console import Console

from dermlens.bundle.bundle import Bundle, find_bundle, load_bundle
from dermlens.bundle.decision import Calibration, DecisionRule, decide, probabilities
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import lesion_classes, resample_weights, sampled_figure
from dermlens.evaluation.calibration import choose_calibration, fit_calibration
from dermlens.evaluation.fit_trust import look
from dermlens.inference.runtime import Runtime

RULE = DecisionRule("prior_adjusted", 1.0)
WAYS = ALONE, OUT, IN = ("temperature alone", "with biases, decided without", "with biases, decided with them")
PARTS = 5


class Lesions:
    """Logits (n, classes), classes and lesion numbers (n,) of one role, and how two fits do on them."""

    def __init__(self, logits: np.ndarray, truth: np.ndarray, lesions: np.ndarray) -> None:
        self.logits, self.truth = logits.astype(np.float64), truth
        self.lesions = np.unique(lesions, return_inverse=True)[1].astype(np.int64)
        self.once = 1.0 / np.bincount(self.lesions)[self.lesions]

    def fits(self, bundle: Bundle, rows: np.ndarray) -> list[Calibration]:
        at = {"prior": bundle.calibration.prior, "training_prior": bundle.calibration.training_prior}
        sample = self.logits[rows], self.truth[rows], self.lesions[rows].tolist()
        return [fit_calibration(*sample, **at, bias=bias) for bias in (False, True)]

    def answered(self, fits: list[Calibration], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return right or wrong (ways, rows) and the log loss of both fits (2, rows)."""
        alone, biased = (probabilities(self.logits[rows], fit) for fit in fits)
        decisions = (
            decide(alone, fits[0], RULE),
            decide(biased, fits[1], RULE),
            decide(biased, replace(fits[1], bias=()), RULE),
        )
        right = np.array([decision == self.truth[rows] for decision in decisions], dtype=float)
        return right, np.array([metrics.log_errors(self.truth[rows], share) for share in (alone, biased)])


def crossfitted(sample: Lesions, bundle: Bundle, *, repeats: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return shares of right answers (ways, n) and log losses (2, n), by fits that did not see the lesion."""
    classes = lesion_classes(sample.truth, sample.lesions)
    right, loss = np.zeros((len(WAYS), len(sample.truth))), np.zeros((2, len(sample.truth)))
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(len(classes))
        part = np.empty(len(classes), dtype=np.int64)
        part[order[np.argsort(classes[order], kind="stable")]] = np.arange(len(classes)) % PARTS
        of = part[sample.lesions]
        for number in range(PARTS):
            known, new = np.flatnonzero(of != number), np.flatnonzero(of == number)
            one, other = sample.answered(sample.fits(bundle, known), new)
            right[:, new] += one / repeats
            loss[:, new] += other / repeats
    return right, loss


def compared(sample: Lesions, right: np.ndarray, loss: np.ndarray, seed: int) -> dict[str, Any]:
    """Return both accuracies of each way, their differences to the temperature alone, and the log losses."""
    drawn = resample_weights(sample.truth, sample.lesions, resamples=1000, seed=seed)
    weights = np.concatenate([np.ones((1, len(sample.truth))), *drawn]) * sample.once
    of_class = (sample.truth[:, None] == np.unique(sample.truth)).astype(float)
    count = weights @ of_class
    balanced = [((weights @ (of_class * row[:, None])) / count).mean(axis=1) for row in right]
    plain = [(weights @ row) / weights.sum(axis=1) for row in right]
    found: dict[str, Any] = {"images": len(sample.truth), "lesions": int(sample.lesions.max()) + 1}
    for place, way in enumerate(WAYS):
        rows = {"balanced_accuracy": balanced, "accuracy": plain}
        found[way] = {name: sampled_figure(row[place], reason="no lesions") for name, row in rows.items()}
        for name, row in rows.items():
            if place:
                found[way][f"{name}_difference"] = sampled_figure(row[place] - row[0], reason="no lesions")
    means = (loss @ sample.once) / sample.once.sum()
    return found | {"log_loss": dict(zip((ALONE, "with biases"), means.tolist(), strict=True))}


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the Markdown of both roles."""
    rows = [
        "| lesions | decision | balanced accuracy | difference | accuracy | difference |",
        "|---|---|---|---|---|---|",
    ]
    for role in ("calibrate, cross-fitted", "select"):
        for way in WAYS:
            cells = found[role][way]
            told = [_text(cells.get(name)) for name in _COLUMNS]
            rows.append(f"| {role} ({found[role]['lesions']}) | {way} | " + " | ".join(told) + " |")
    return rows


_COLUMNS = ("balanced_accuracy", "balanced_accuracy_difference", "accuracy", "accuracy_difference")


def _text(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    limits = "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure['value']:.3f}{limits}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/biases"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(stderr=True, width=120)
    bundle = load_bundle(find_bundle(options.model))
    runtime = Runtime(bundle.graph_path)
    roles = embedded_roles(bundle, console)
    seen = {role: look(bundle, runtime, roles[role], console, role) for role in ("calibrate", "select")}
    known, other = (Lesions(each.logits, each.y_true, each.lesions) for each in seen.values())
    at = {"prior": bundle.calibration.prior, "training_prior": bundle.calibration.training_prior}
    _, test = choose_calibration(known.logits, known.truth, known.lesions.tolist(), **at, seed=options.seed)
    fits = known.fits(bundle, np.arange(len(known.truth)))
    across = crossfitted(known, bundle, repeats=options.repeats, seed=options.seed)
    found = {
        "model": {"name": bundle.name, "sha256": bundle.sha256},
        "repeats": options.repeats,
        "seed": options.seed,
        "temperature": {"alone": fits[0].temperature, "with biases": fits[1].temperature},
        "biases": dict(zip(bundle.codes, fits[1].bias, strict=True)),
        "choice": test.as_dict(),
        "calibrate, cross-fitted": compared(known, *across, options.seed),
        "select": compared(other, *other.answered(fits, np.arange(len(other.truth))), options.seed),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "biases.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: found[name] for name in ("temperature", "biases", "choice")}, indent=1))
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
