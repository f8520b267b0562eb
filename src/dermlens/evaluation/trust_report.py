"""What an evaluation says beyond accuracy: calibration, decision rules, sets, referral, status, novelty.

All of it on scored images, lesions that the model has not met; the limits themselves are those of the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dermlens.evaluation import metrics, weighted
from dermlens.evaluation.bootstrap import resample_weights, sampled_figure
from dermlens.evaluation.conformal import measure_sets
from dermlens.evaluation.operating_points import aims, decision_curve, measure_point
from dermlens.evaluation.weighted import Bools, Floats, Ints
from dermlens.inference.bundle import Bundle
from dermlens.inference.decision import DecisionRule, decide, probabilities
from dermlens.inference.predict import Prediction

RESAMPLES = 1000
RULES = {
    "largest probability": DecisionRule("largest_probability", 0.0),
    "prior adjusted": DecisionRule("prior_adjusted", 1.0),
}
STATUSES = ("ok", "uncertain", "rejected")


@dataclass(frozen=True)
class Answers:
    """The scored images as arrays: classes (n,), lesion numbers (n,), probability (n, classes), and the answers."""

    bundle: Bundle
    y_true: Ints
    lesions: Ints
    probability: Floats
    decision: Ints
    logits: Floats
    predictions: Sequence[Prediction]

    @property
    def right(self) -> Bools:
        """Whether each decision is the true class, (n,)."""
        right: Bools = self.decision == self.y_true
        return right


def answers_of(bundle: Bundle, predictions: Sequence[Prediction], labels: Sequence[str], lesions: Ints) -> Answers:
    """Put the answers of readable images into arrays."""
    codes = bundle.codes
    return Answers(
        bundle=bundle,
        y_true=np.array([codes.index(label) for label in labels], dtype=np.int64),
        lesions=np.unique(lesions, return_inverse=True)[1].astype(np.int64),
        probability=np.array([[p.probabilities[c] for c in codes] for p in predictions]),
        decision=np.array([codes.index(p.diagnosis_code or "") for p in predictions], dtype=np.int64),
        logits=np.array([p.logits for p in predictions], dtype=np.float64),
        predictions=predictions,
    )


def calibration(answers: Answers) -> dict[str, Any]:
    """Return ECE, Brier and log loss before (temperature 1, no bias) and after calibration, and reliability by bin."""
    fitted = answers.bundle.calibration
    raw = probabilities(answers.logits, replace(fitted, temperature=1.0, bias=()))
    both = {"before": raw, "after": answers.probability}
    result: dict[str, Any] = {
        "temperature": fitted.temperature,
        "bias": dict(zip(answers.bundle.codes, fitted.bias, strict=True)),
        "bias_test": answers.bundle.card["calibration_fit"].get("bias"),
    }
    for name, values in both.items():
        result[name] = {
            "ece": metrics.expected_calibration_error(answers.y_true, values),
            "brier": metrics.brier_loss(answers.y_true, values),
            "log_loss": metrics.log_loss(answers.y_true, values),
            "reliability": _reliability(answers.y_true, values),
        }
    result["classwise_ece"] = {
        code: _class_error(answers.y_true == c, answers.probability[:, c])
        for c, code in enumerate(answers.bundle.codes)
    }
    return result


def _reliability(y_true: Ints, probability: Floats) -> dict[str, list[float]]:
    confidence, correct = metrics.top_label(y_true, probability)
    bins = metrics.equal_mass_bins(confidence, min(metrics.ECE_BINS, max(1, len(y_true) // 20)))
    rows = [bins == b for b in np.unique(bins)]
    return {
        "confidence": [float(confidence[row].mean()) for row in rows],
        "accuracy": [float(correct[row].mean()) for row in rows],
        "images": [float(row.sum()) for row in rows],
    }


def _class_error(positive: Bools, probability: Floats) -> float:
    bins = metrics.equal_mass_bins(probability)
    weights = np.ones((1, len(positive)))
    return float(weighted.calibration_error(probability, positive, bins, weights)[0])


def decision_rules(answers: Answers) -> dict[str, Any]:
    """Return what each rule costs: accuracy, balanced accuracy and the sensitivity of each class."""
    calibrated, codes = answers.bundle.calibration, answers.bundle.codes
    result = {}
    for name, rule in RULES.items():
        decision = decide(answers.probability, calibrated, rule)
        shares = metrics.sensitivity_scores(answers.y_true, decision, len(codes))
        result[name] = {
            "in_use": rule.kind == answers.bundle.decision_rule.kind,
            "accuracy": metrics.accuracy_score(answers.y_true, decision),
            "balanced_accuracy": metrics.balanced_accuracy_score(answers.y_true, decision),
            "sensitivity": {c: float(s) if np.isfinite(s) else None for c, s in zip(codes, shares, strict=True)},
        }
    return result


def trust_sections(answers: Answers, *, seed: int) -> dict[str, Any]:
    """Return sets, operating points, decision curves, statuses and novelty; null for a bundle without these facts."""
    bundle, trust = answers.bundle, answers.bundle.trust
    curves = {
        aim: decision_curve(answers.probability, answers.y_true, [bundle.codes.index(c) for c in members])
        for aim, members in aims(bundle.codes).items()
    }
    if trust is None:
        return {"prediction_sets": None, "operating_points": [], "decision_curves": curves, "status": None} | {
            "referral": None,
            "novelty": None,
        }
    points = []
    for point in bundle.card["trust"]["operating_points"]:
        fresh = measure_point(point, answers.probability, answers.y_true, answers.lesions, bundle.codes, seed=seed)
        kept = {key: point[key] for key in ("name", "codes", "threshold", "aimed_at") if key in point}
        points.append({**kept, **fresh})
    sets = None
    if trust.sets is not None:
        inside = np.array([[c in (p.prediction_set or ()) for c in bundle.codes] for p in answers.predictions])
        sets = {"level": trust.sets.level, **measure_sets(inside, answers.y_true, answers.lesions, bundle.codes)}
    return {
        "prediction_sets": sets,
        "operating_points": points,
        "referral": trust.referral,
        "decision_curves": curves,
        "status": _statuses(answers, seed),
        "novelty": _novelty(answers),
    }


def _statuses(answers: Answers, seed: int) -> dict[str, Any]:
    """Return share, accuracy and balanced accuracy of each status, and of all, with intervals over lesions."""
    status = np.array([p.status for p in answers.predictions])
    blocks = resample_weights(answers.y_true, answers.lesions, resamples=RESAMPLES, seed=seed)
    weights = np.concatenate([np.ones((1, len(status))), *blocks])

    def row(chosen: Bools, *, lesions: int | None = None) -> dict[str, Any]:
        part = weights * chosen
        right = weighted.ratio(part @ answers.right.astype(np.float64), part.sum(axis=1))
        return {
            "n": int(chosen.sum()),
            "share": sampled_figure(part.sum(axis=1) / weights.sum(axis=1), reason="no images", lesions=lesions),
            "accuracy": sampled_figure(right, reason="no images", lesions=len(np.unique(answers.lesions[chosen]))),
        }

    reasons: dict[str, int] = {}
    for prediction in answers.predictions:
        for reason in prediction.reasons:
            reasons[reason.code] = reasons.get(reason.code, 0) + 1
    everyone = len(np.unique(answers.lesions))
    rows = {name: row(status == name, lesions=everyone) for name in STATUSES}
    return {"all": row(np.ones(len(status), bool)), **rows, "reasons": reasons}


def _novelty(answers: Answers) -> dict[str, Any] | None:
    scores = [p.novelty["score"] for p in answers.predictions if p.novelty]
    if not scores or answers.bundle.trust is None or answers.bundle.trust.novelty is None:
        return None
    threshold = answers.bundle.trust.novelty.threshold
    values = np.array(scores)
    return {
        "threshold": threshold,
        "kept": float(np.mean(values <= threshold)),
        "quantiles": {str(q): float(np.quantile(values, q)) for q in (0.05, 0.5, 0.95, 0.99)},
    }
