"""The embedded model's own limits on its test role: calibration, lists of what cannot be ruled out, referral.

Computed from the lesions that its bundle stores, so it needs no pictures. Limits are fitted on the calibrate lesions.
`chance` is the calibration error that exact probabilities would show on so few lesions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.report import cell, markdown, model_of
from benchmarks.roles import embedded_bundle
from dermlens.bundle.bundle import Bundle
from dermlens.bundle.case_mix import CaseMix, equal_mix
from dermlens.bundle.limits import METHODS, SetRule, fit_limits, measure_sets, mix_weights
from dermlens.bundle.probabilities import probabilities
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import sampled_figure, weightings
from dermlens.evaluation.trust_sections import Answers
from dermlens.evaluation.trust_sections import calibration as calibration_of
from dermlens.text import figure


def run(*, seed: int = 0) -> dict[str, Any]:
    """Return the figures at the equal mix and at that of the training data."""
    bundle = embedded_bundle()
    known = bundle.lesions["test"]
    mix = equal_mix(bundle.codes)
    share = probabilities(known.logits, bundle.calibration, mix.of(bundle.codes))
    lesions = np.unique(known.lesions, return_inverse=True)[1].astype(np.int64)
    logits = known.logits.astype(np.float64)
    answers = Answers(bundle, mix, known.classes, lesions, share, share.argmax(axis=1), logits, [])
    limits = bundle.limits(mix)
    rule = bundle.trust.facts.prediction_sets
    return {
        "model": model_of(bundle),
        "images": len(known.classes),
        "lesions": len(np.unique(lesions)),
        "calibration": calibration_of(answers, seed=seed),
        "by_class": _direction(answers, seed),
        "sets": {each.name: _sets(bundle, each) for each in (mix, bundle.card.training_mix)},
        "method": None if rule is None else rule.method,
        "points": [point.as_dict() for point in limits.points],
    }


def _direction(answers: Answers, seed: int) -> dict[str, Any]:
    """Return by true class the mean largest probability minus the share of right answers, at the equal mix.

    Above 0 the model is surer than it is right. `given` is the same by the class that is named.
    """
    confidence, right = metrics.top_label(answers.y_true, answers.probability)
    weights = weightings(answers.y_true, answers.lesions, seed=seed)
    weights = weights * mix_weights(answers.y_true, answers.lesions, answers.limits.shares)
    surplus = confidence - right
    found = {}
    for c, code in enumerate(answers.bundle.codes):
        found[code] = {
            "lesions": len(np.unique(answers.lesions[answers.y_true == c])),
            **{
                name: sampled_figure(metrics.mean_loss(surplus, weights * rows), reason="no images")
                for name, rows in (("true", answers.y_true == c), ("given", answers.decision == c))
            },
        }
    found["all"] = {
        "lesions": len(np.unique(answers.lesions)),
        **dict.fromkeys(("true", "given"), sampled_figure(metrics.mean_loss(surplus, weights), reason="no images")),
    }
    return found


def _sets(bundle: Bundle, mix: CaseMix) -> dict[str, Any]:
    """Return coverage and length on the test lesions, by method."""
    known, shares = bundle.lesions["test"], mix.of(bundle.codes)
    share = probabilities(known.logits, bundle.calibration, shares)
    found: dict[str, Any] = {}
    for method in METHODS:
        limits = fit_limits(
            mix, bundle.codes, bundle.calibration, bundle.lesions, rule=SetRule(method), sensitivity=0.95
        )
        inside = limits.sets(share)
        if inside is not None:
            found[method] = measure_sets(inside, known, bundle.codes, shares)
    return found


def table(found: Mapping[str, Any]) -> str:
    """Return calibration at both mixes, its direction by class, the lists, and the operating points."""
    at = found["calibration"]["at"]
    rows = [
        [
            name,
            row["after"]["ece"],
            f"{row['chance']['mean']:.3f} (in 1 of 20 above {row['chance']['high']:.3f})",
            row["after"]["ece_debiased"],
            f"{row['after']['brier']['value']:.3f}",
            f"{row['after']['log_loss']['value']:.3f}",
        ]
        for name, row in at.items()
    ]
    header = ["case mix", "ECE", "of exact probabilities", "ECE without what chance adds", "Brier", "log loss"]
    by_class = [[code, row["lesions"], row["true"], row["given"]] for code, row in found["by_class"].items()]
    points = [
        [
            point["name"],
            f"{point['threshold']:.3f}",
            *(point[key] for key in ("sensitivity", "specificity", "referred")),
        ]
        for point in found["points"]
    ]
    return "\n\n".join(
        (
            f"Version {found['model']['version']}, {found['images']:,} test images of {found['lesions']:,} lesions.",
            markdown(header, rows),
            "Mean largest probability minus share of right answers, equal mix; above 0 it is surer than it is right:",
            markdown(["class", "lesions", "lesions of the class", "answers of the class"], by_class),
            _set_table(found["sets"]["equal"], found["method"]),
            "At the mix of the training data the lists hold the truth for "
            + ", ".join(
                f"{figure(row['coverage'])} with {row['mean_size']:.2f} diagnoses ({method})"
                for method, row in found["sets"]["training"].items()
            )
            + ".",
            markdown(["operating point, equal mix", "threshold", "sensitivity", "specificity", "referred"], points),
        )
    )


def _set_table(sets: Mapping[str, Any], used: str) -> str:
    header = ["what cannot be ruled out, equal mix", "lesions"]
    for method in sets:
        name = f"{method}{' (in use)' if method == used else ''}"
        header += [f"coverage, {name}", "mean length"]
    first = next(iter(sets.values()))
    rows = [["all", first["n_lesions"], *(part for row in sets.values() for part in _cells(row))]]
    rows += [
        [code, each["n_lesions"], *(part for row in sets.values() for part in _cells(row["per_class"][code]))]
        for code, each in first["per_class"].items()
    ]
    return markdown(header, rows)


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [cell(row["coverage"]), f"{row['mean_size']:.2f}"] if row["coverage"] else ["n/a", "n/a"]
