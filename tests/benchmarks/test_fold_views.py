"""Test-time views over folds: in pairs with the plain view, each fold by its own bundle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fold_views
import numpy as np
from fold_views import CHOICES, PLAIN, compared, lines, refitted
from folds import OutOfFold

from dermlens.bundle.decision import Calibration, DecisionRule, decide, softmax
from dermlens.evaluation.metrics import expected_calibration_error

CODES = ("BKL", "MEL", "NV")
PRIOR = (0.2, 0.2, 0.6)


def out_of_fold(number: int, noise: float) -> OutOfFold:
    """Eight views of 200 lesions, each the same logits under noise of its own."""
    rng = np.random.default_rng(number)
    truth = rng.choice(3, 200, p=PRIOR)
    logits = 2.0 * np.eye(3)[truth] + np.log(PRIOR) + rng.normal(0, noise, (8, 200, 3))
    rule, calibration = DecisionRule("prior_adjusted", 1.0), Calibration(1.0, PRIOR, PRIOR)
    bundle: Any = SimpleNamespace(codes=CODES, calibration=calibration, decision_rule=rule)
    table = {
        "truth": truth,
        "decision": decide(softmax(logits[0]), calibration, rule),
        "lesion": np.array([f"{number}-{i}" for i in range(200)]),
    }
    return OutOfFold(bundle, table, logits.astype(np.float32), np.zeros((200, 1), np.float32))


def test_more_views_are_steadier_and_compared_in_pairs() -> None:
    folds = {0: out_of_fold(0, 2.0), 1: out_of_fold(1, 2.0)}
    found = compared(folds, seed=0)
    views = found["views"]
    assert found["lesions"] == 400 and set(views) == set(CHOICES) and "minus_plain" not in views[PLAIN]
    gain = views["8"]["minus_plain"]
    assert gain["low"] > 0
    assert (
        abs(gain["value"] - views["8"]["balanced_accuracy"]["value"] + views[PLAIN]["balanced_accuracy"]["value"])
        < 1e-9
    )
    truth = np.concatenate([part.table["truth"] for part in folds.values()])
    decision = np.concatenate([part.table["decision"] for part in folds.values()])
    assert views[PLAIN]["accuracy"]["value"] == np.mean(truth == decision), "the plain view decides as the run did"
    text = lines({"method": "top", "folds": [0, 1], **found})
    assert sum(line.startswith("|") for line in text) == 2 + len(CHOICES)
    assert fold_views.plot(found).startswith(b"\x89PNG")


def test_the_choices_without_half_turns_have_none() -> None:
    assert all(view % 4 != 1 for name, views in CHOICES.items() if not name.isdigit() for view in views)
    assert [len(views) for views in CHOICES.values()] == [1, 2, 4, 8, 2, 6]


def test_the_temperature_fitted_anew_puts_right_what_is_too_unsure() -> None:
    rng = np.random.default_rng(0)
    sure = softmax(rng.normal(0, 2, (2000, 3)))
    truth = np.array([rng.choice(3, p=row) for row in sure])
    unsure = softmax(np.log(sure) / 2)
    again = refitted(unsure, truth, np.full(3, 1 / 3), seed=0)
    before, after = (expected_calibration_error(truth, p) for p in (unsure, again))
    assert before > 0.1 and after < 0.04
