"""The figures of an evaluation beyond accuracy: calibration, decision rules, sets, referral, status, novelty.

All on scored images, so on lesions that the model has not seen; the limits are those of the bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dermlens.bundle.bundle import Bundle
from dermlens.bundle.decision import Calibration, DecisionRule, decide, probabilities
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import RESAMPLES, sampled_figure, weightings
from dermlens.evaluation.conformal import measure_sets
from dermlens.evaluation.metrics import Bools, Floats, Ints
from dermlens.evaluation.thresholds import aims, decision_curve, measure_point
from dermlens.inference.prediction import Prediction

ACCEPTED_SHARES = (0.8, 0.9, 0.95, 0.99)  # of the scored images, by other thresholds of novelty
RULES = {
    "largest probability": DecisionRule("largest_probability", 0.0),
    "prior adjusted": DecisionRule("prior_adjusted", 1.0),
}
STATUSES = ("ok", "uncertain", "rejected")


@dataclass(frozen=True, eq=False)
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
        """Whether each decision is correct, (n,)."""
        return np.asarray(self.decision == self.y_true, np.bool_)

    @property
    def status(self) -> npt.NDArray[np.str_]:
        """The status of each answer, (n,)."""
        return np.array([prediction.status for prediction in self.predictions])

    @property
    def inside(self) -> Bools | None:
        """Which classes each prediction set contains, (n, classes); None for a bundle without sets."""
        if self.bundle.trust.sets is None:
            return None
        return np.array([[c in (p.prediction_set or ()) for c in self.bundle.codes] for p in self.predictions])

    @property
    def referred(self) -> Bools | None:
        """Whether a specialist is advised, (n,); None for a bundle without an operating point."""
        point = self.bundle.trust.operating_point
        if point is None:
            return None
        return np.asarray(self.probability[:, self.places(point.codes)].sum(axis=1) >= point.threshold, np.bool_)

    def places(self, codes: Sequence[str]) -> list[int]:
        """Return the columns of some classes."""
        return [self.bundle.codes.index(code) for code in codes]

    def part(self, rows: Bools) -> Answers:
        """Return the chosen images alone."""
        names = ("y_true", "lesions", "probability", "decision", "logits")
        predictions = [prediction for prediction, chosen in zip(self.predictions, rows, strict=True) if chosen]
        return replace(self, predictions=predictions, **{name: getattr(self, name)[rows] for name in names})


def answers_of(
    bundle: Bundle, predictions: Sequence[Prediction], labels: Sequence[str], lesions: npt.ArrayLike
) -> Answers:
    """Return the answers to readable images as arrays."""
    codes = bundle.codes
    return Answers(
        bundle=bundle,
        y_true=np.array([codes.index(label) for label in labels], dtype=np.int64),
        lesions=np.unique(np.asarray(lesions), return_inverse=True)[1].astype(np.int64),
        probability=np.array([[p.probabilities[c] for c in codes] for p in predictions]),
        decision=np.array([codes.index(p.diagnosis_code or "") for p in predictions], dtype=np.int64),
        logits=np.array([p.logits for p in predictions], dtype=np.float64),
        predictions=predictions,
    )


def calibration(answers: Answers, *, seed: int = 0) -> dict[str, Any]:
    """Return how well the probabilities are calibrated before (temperature 1, no bias) and after, whole and by class.

    Returns:
        For "before" and "after" the calibration error, Brier score, log loss and the points of the reliability
        diagrams; `chance` is the error that perfect probabilities would show on so few lesions.
    """
    fitted, codes, truth = answers.bundle.calibration, answers.bundle.codes, answers.y_true
    raw = probabilities(answers.logits, Calibration(1.0, fitted.prior, fitted.training_prior))
    before, after = (_quality(truth, values, codes) for values in (raw, answers.probability))
    return {
        "temperature": fitted.temperature,
        "bias": dict(zip(codes, fitted.bias, strict=True)),
        "bias_test": answers.bundle.card.calibration_fit.bias,
        "before": before,
        "after": after,
        "classwise_ece": after["classwise_ece"],
        "chance": error_by_chance(answers.probability.max(axis=1), answers.lesions, seed=seed),
    }


def _quality(truth: Ints, probability: Floats, codes: Sequence[str]) -> dict[str, Any]:
    """Return how good probabilities are; a class without images has an error and no diagram."""
    classes = [(code, truth == c, probability[:, c]) for c, code in enumerate(codes)]
    confidence, correct = metrics.top_label(truth, probability)
    bins = metrics.equal_mass_bins(confidence, _bin_count(len(truth), 20))
    return {
        "ece": metrics.expected_calibration_error(truth, probability),
        "brier": metrics.brier_loss(truth, probability),
        "log_loss": metrics.log_loss(truth, probability),
        "reliability": _points(confidence, correct, bins),
        "classwise_ece": {code: _class_error(positive, values) for code, positive, values in classes},
        "classwise_reliability": {
            code: _class_reliability(positive, values) for code, positive, values in classes if positive.any()
        },
    }


def error_by_chance(confidence: Floats, lesions: Ints, *, seed: int) -> dict[str, float]:
    """Return the calibration error that exactly correct probabilities would show: `mean`, and `high` (95 %).

    With few images each bin holds few, and its share of correct answers varies. One draw decides for all images of a
    lesion, so they count as one.

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


def _class_reliability(positive: Bools, probability: Floats) -> dict[str, list[float]]:
    """Return the points of one class: each bin is expected to hold equally many of its lesions.

    With equally many images in each bin, all but one bin of a rare class would lie at 0.
    """
    order = np.argsort(probability, kind="stable")
    expected = np.cumsum(probability[order])
    count = _bin_count(int(positive.sum()), 5)
    bins = np.empty(len(order), np.int64)
    share = (expected - probability[order] / 2) / max(float(expected[-1]), np.finfo(np.float64).tiny)
    bins[order] = np.minimum(count - 1, share * count)
    return _points(probability, positive, bins)


def _bin_count(n: int, of_each: int) -> int:
    return min(metrics.ECE_BINS, max(1, n // of_each))


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
        aim: decision_curve(answers.probability, answers.y_true, answers.places(members))
        for aim, members in aims(bundle.codes).items()
    }
    points = []
    for point in (each.as_dict() for each in trust.facts.operating_points):
        fresh = measure_point(point, answers.probability, answers.y_true, answers.lesions, bundle.codes, seed=seed)
        points.append({key: point[key] for key in ("name", "codes", "threshold", "aimed_at")} | fresh)
    sets, inside = None, answers.inside
    if trust.sets is not None and inside is not None:
        sets = {"level": trust.sets.level, **measure_sets(inside, answers.y_true, answers.lesions, bundle.codes)}
    return {
        "prediction_sets": sets,
        "operating_points": points,
        "referral": trust.facts.referral,
        "decision_curves": curves,
        "status": _statuses(answers, seed),
        "novelty": _novelty(answers),
    }


def _statuses(answers: Answers, seed: int) -> dict[str, Any]:
    """Return share, accuracy and balanced accuracy of each status, and of all, with intervals over lesions."""
    status = answers.status
    weights = weightings(answers.y_true, answers.lesions, seed=seed)

    def row(chosen: Bools, *, lesions: int | None = None) -> dict[str, Any]:
        part = weights * chosen
        right = metrics.mean_loss(answers.right.astype(np.float64), part)
        return {
            "n": int(chosen.sum()),
            "share": sampled_figure(part.sum(axis=1) / weights.sum(axis=1), reason="no images", lesions=lesions),
            "accuracy": sampled_figure(right, reason="no images", lesions=len(np.unique(answers.lesions[chosen]))),
        }

    given = [reason for prediction in answers.predictions for reason in prediction.reasons]
    everyone = len(np.unique(answers.lesions))
    return {
        "all": row(np.ones(len(status), bool)),
        **{name: row(status == name, lesions=everyone) for name in STATUSES},
        "reasons": dict(Counter(reason.code for reason in given)),
        "reason_words": {reason.code: reason.text for reason in reversed(given)},  # those of the first such image
    }


def _novelty(answers: Answers) -> dict[str, Any] | None:
    """Return the novelty scores of these images; for other thresholds, the accuracy on the images that they accept."""
    scores = [p.novelty["score"] for p in answers.predictions if p.novelty]
    novelty = answers.bundle.trust.novelty
    if not scores or novelty is None:
        return None
    values = np.array(scores)
    others = [float(np.quantile(values, share)) for share in ACCEPTED_SHARES]

    def row(limit: float) -> dict[str, Any]:
        accepted = values <= limit
        return {
            "threshold": limit,
            "in_use": limit == novelty.threshold,
            "kept": float(np.mean(accepted)),
            "accuracy": float(answers.right[accepted].mean()) if accepted.any() else None,
        }

    return {
        "threshold": novelty.threshold,
        "kept": float(np.mean(values <= novelty.threshold)),
        "quantiles": {str(q): float(np.quantile(values, q)) for q in (0.05, 0.5, 0.95, 0.99)},
        "by_threshold": [row(limit) for limit in sorted({*others, novelty.threshold})],
    }
