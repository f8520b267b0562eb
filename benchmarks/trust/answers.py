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
    """Return calibration at both mixes, and by class its direction and the lists."""
    rows = [
        [
            name,
            row["after"]["ece"],
            f"{row['chance']['mean']:.3f} (in 1 of 20 above {row['chance']['high']:.3f})",
            row["after"]["ece_debiased"],
            f"{row['after']['log_loss']['value']:.3f}",
        ]
        for name, row in found["calibration"]["at"].items()
    ]
    header = ["case mix", "ECE", "of exact probabilities", "ECE with less of what chance adds", "log loss"]
    sets, used = found["sets"]["equal"], found["method"]
    by_class = [
        [code, row["lesions"], row["given"], *_cells(sets[used] if code == "all" else sets[used]["per_class"][code])]
        for code, row in found["by_class"].items()
    ]
    other = "; ".join(
        f"{mix} mix, {method} {figure(row['coverage'])}, length {row['mean_size']:.2f}"
        for mix, methods in found["sets"].items()
        for method, row in methods.items()
        if (mix, method) != ("equal", used)
    )
    return "\n\n".join(
        (
            f"Version {found['model']['version']}, {found['images']:,} test images of {found['lesions']:,} lesions.",
            markdown(header, rows),
            markdown(["class", "lesions", "surer than right, answers of it", "list holds it", "length"], by_class),
            f"Lists by the {used} probability. Other lists hold it: {other}.",
        )
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [cell(row["coverage"]), f"{row['mean_size']:.2f}"] if row["coverage"] else ["n/a", "n/a"]
