"""What an evaluation says beyond accuracy: calibration, decision rules, sets, referral, status, novelty.

All of it on scored images, lesions that the model has not met; the limits themselves are those of the bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from dermlens.bundle.bundle import Bundle
from dermlens.bundle.decision import DecisionRule, decide, probabilities
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import resample_weights, sampled_figure
from dermlens.evaluation.conformal import measure_sets
from dermlens.evaluation.metrics import Bools, Floats, Ints
from dermlens.evaluation.thresholds import aims, decision_curve, measure_point
from dermlens.inference.prediction import Prediction

RESAMPLES = 1000
KEPT_SHARES = (0.8, 0.9, 0.95, 0.99)  # of the scored images, by other thresholds of novelty
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


def calibration(answers: Answers, *, seed: int = 0) -> dict[str, Any]:
    """Return how well the probabilities are calibrated before (temperature 1, no bias) and after, whole and by class.

    Returns:
        For "before" and "after" the calibration error, Brier score, log loss and the points of the reliability
        diagrams; `chance` says what error even perfect probabilities would show on so few lesions.
    """
    fitted, codes = answers.bundle.calibration, answers.bundle.codes
    raw = probabilities(answers.logits, msgspec.structs.replace(fitted, temperature=1.0, bias=()))
    both = {"before": raw, "after": answers.probability}
    result: dict[str, Any] = {
        "temperature": fitted.temperature,
        "bias": dict(zip(codes, fitted.bias, strict=True)),
        "bias_test": answers.bundle.card.calibration_fit.bias,
    }
    for name, values in both.items():
        result[name] = {
            "ece": metrics.expected_calibration_error(answers.y_true, values),
            "brier": metrics.brier_loss(answers.y_true, values),
            "log_loss": metrics.log_loss(answers.y_true, values),
            "reliability": _reliability(answers.y_true, values),
            "classwise_ece": {code: _class_error(answers.y_true == c, values[:, c]) for c, code in enumerate(codes)},
            "classwise_reliability": {
                code: _class_reliability(answers.y_true == c, values[:, c])
                for c, code in enumerate(codes)
                if (answers.y_true == c).any()
            },
        }
    result["classwise_ece"] = result["after"]["classwise_ece"]
    result["chance"] = error_by_chance(answers.probability.max(axis=1), answers.lesions, seed=seed)
    return result


def error_by_chance(confidence: Floats, lesions: Ints, *, seed: int) -> dict[str, float]:
    """Return the calibration error that probabilities right to the last digit would show: `mean`, and `high` (95 %).

    With few images each bin holds few, and its share of right answers strays. All images of a lesion are right or
    wrong by one draw, so that they count as no more than they are.

    Args:
        confidence: (n,) largest probability; lesions: (n,) lesion numbers from 0.
    """
    bins = metrics.equal_mass_bins(confidence)
    member = (bins[:, None] == np.arange(bins.max() + 1)).astype(np.float64)
    generator, errors = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        right = generator.random(int(lesions.max()) + 1)[lesions] < confidence
        errors.append(float(np.abs((confidence - right) @ member).sum()) / len(confidence))
    return {"mean": float(np.mean(errors)), "high": float(np.quantile(errors, 0.95))}


def _reliability(y_true: Ints, probability: Floats) -> dict[str, list[float]]:
    confidence, correct = metrics.top_label(y_true, probability)
    return _points(confidence, correct, metrics.equal_mass_bins(confidence, _bins(len(y_true), 20)))


def _class_reliability(positive: Bools, probability: Floats) -> dict[str, list[float]]:
    """Return the points of one class: bins in which equally many of it are expected.

    With equally many images in each bin, all but one bin of a rare class would lie at 0.
    """
    order = np.argsort(probability, kind="stable")
    expected = np.cumsum(probability[order])
    count = _bins(int(positive.sum()), 5)
    bins = np.empty(len(order), np.int64)
    share = (expected - probability[order] / 2) / max(float(expected[-1]), np.finfo(np.float64).tiny)
    bins[order] = np.minimum(count - 1, share * count)
    return _points(probability, positive, bins)


def _bins(n: int, each: int) -> int:
    return min(metrics.ECE_BINS, max(1, n // each))


def _points(confidence: Floats, correct: Bools, bins: Ints) -> dict[str, list[float]]:
    rows = [bins == b for b in np.unique(bins)]
    return {
        "confidence": [float(confidence[row].mean()) for row in rows],
        "accuracy": [float(correct[row].mean()) for row in rows],
        "images": [float(row.sum()) for row in rows],
    }


def _class_error(positive: Bools, probability: Floats) -> float:
    bins = metrics.equal_mass_bins(probability)
    weights = np.ones((1, len(positive)))
    return float(metrics.calibration_error(probability, positive, bins, weights)[0])


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
    """Return sets, operating points, decision curves, statuses and novelty; null where a bundle lacks them."""
    bundle, trust = answers.bundle, answers.bundle.trust
    curves = {
        aim: decision_curve(answers.probability, answers.y_true, [bundle.codes.index(c) for c in members])
        for aim, members in aims(bundle.codes).items()
    }
    points = []
    for point in (each.as_dict() for each in trust.operating_points):
        fresh = measure_point(point, answers.probability, answers.y_true, answers.lesions, bundle.codes, seed=seed)
        kept = {key: point[key] for key in ("name", "codes", "threshold", "aimed_at")}
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
        right = metrics.ratio(part @ answers.right.astype(np.float64), part.sum(axis=1))
        return {
            "n": int(chosen.sum()),
            "share": sampled_figure(part.sum(axis=1) / weights.sum(axis=1), reason="no images", lesions=lesions),
            "accuracy": sampled_figure(right, reason="no images", lesions=len(np.unique(answers.lesions[chosen]))),
        }

    given = [reason for prediction in answers.predictions for reason in prediction.reasons]
    reasons = Counter(reason.code for reason in given)
    everyone = len(np.unique(answers.lesions))
    rows = {name: row(status == name, lesions=everyone) for name in STATUSES}
    return {"all": row(np.ones(len(status), bool)), **rows, "reasons": dict(reasons)} | {
        "reason_words": {reason.code: reason.text for reason in reversed(given)}  # those of the first such image
    }


def _novelty(answers: Answers) -> dict[str, Any] | None:
    """Return how these images score, and what other thresholds would keep of them and reach on what they keep."""
    scores = [p.novelty["score"] for p in answers.predictions if p.novelty]
    novelty = answers.bundle.trust.novelty
    if not scores or novelty is None:
        return None
    threshold = novelty.threshold
    values = np.array(scores)
    others = [float(np.quantile(values, share)) for share in KEPT_SHARES]
    return {
        "threshold": threshold,
        "kept": float(np.mean(values <= threshold)),
        "quantiles": {str(q): float(np.quantile(values, q)) for q in (0.05, 0.5, 0.95, 0.99)},
        "by_threshold": [
            {
                "threshold": limit,
                "in_use": limit == threshold,
                "kept": float(np.mean(values <= limit)),
                "accuracy": float(answers.right[values <= limit].mean()) if (values <= limit).any() else None,
            }
            for limit in sorted({*others, threshold})
        ],
    }
