"""The figures of an evaluation beyond accuracy: calibration, sets, referral, status and advice, novelty.

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
from dermlens.bundle.case_mix import CaseMix, equal_mix
from dermlens.bundle.limits import Lesions, Limits, aims, grave_codes, is_referred, measure_sets, mix_weights
from dermlens.bundle.probabilities import Calibration, probabilities
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import RESAMPLES, debiased_error, sampled_figure, weightings
from dermlens.evaluation.metrics import Bools, Floats, Ints
from dermlens.evaluation.thresholds import decision_curve, measure_point
from dermlens.inference.judge import ADVICE
from dermlens.inference.prediction import Prediction

ACCEPTED_SHARES = (0.8, 0.9, 0.95, 0.99)  # of the scored images, by other thresholds of novelty
STATUSES = ("ok", "uncertain", "rejected")


@dataclass(frozen=True, eq=False)
class Answers:
    """The scored images as arrays: classes (n,), lesion numbers (n,), probability (n, classes), and the answers.

    `mix` is the case mix of the probabilities.
    """

    bundle: Bundle
    mix: CaseMix
    y_true: Ints
    lesions: Ints
    probability: Floats
    decision: Ints
    logits: Floats
    predictions: Sequence[Prediction]

    @property
    def limits(self) -> Limits:
        """What the answers were judged by."""
        return self.bundle.limits(self.mix)

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
        if self.limits.set_limit is None:
            return None
        return np.array([[c in (p.prediction_set or ()) for c in self.bundle.codes] for p in self.predictions])

    @property
    def referred(self) -> Bools | None:
        """Whether a specialist is advised, (n,); None for a bundle without an operating point."""
        point = self.limits.referral
        if point is None:
            return None
        return is_referred(self.probability, self.places(point.codes), point.threshold)

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
        mix=predictions[0].case_mix,
        y_true=np.array([codes.index(label) for label in labels], dtype=np.int64),
        lesions=np.unique(np.asarray(lesions), return_inverse=True)[1].astype(np.int64),
        probability=np.array([[p.probabilities[c] for c in codes] for p in predictions]),
        decision=np.array([codes.index(p.diagnosis_code or "") for p in predictions], dtype=np.int64),
        logits=np.array([p.logits for p in predictions], dtype=np.float64),
        predictions=predictions,
    )


def calibration(answers: Answers, *, seed: int = 0) -> dict[str, Any]:
    """Return how well the probabilities are calibrated, at the equal mix and at the mix of the training data.

    Each class counts as much as its share in the mix, so that the lesions at hand stand for it (Saerens et al. 2002).

    Returns:
        `at`: for each mix the state "before" (temperature 1, no bias) and "after": calibration error, Brier score and
        log loss, each with a 95 % interval over lesions, and the points of the reliability diagrams. `ece_debiased` is
        the error without its bias by chance; `chance` is the error that exact probabilities would show on so few
        lesions.
    """
    bundle, codes = answers.bundle, answers.bundle.codes
    fitted = bundle.calibration
    mixes = {mix.name: mix for mix in (equal_mix(codes), bundle.card.training_mix, answers.mix)}
    raw = Calibration(1.0, fitted.training_prior)
    return {
        "temperature": fitted.temperature,
        "bias": dict(zip(codes, fitted.bias, strict=True)),
        "bias_test": bundle.card.calibration_fit.bias,
        "case_mix": answers.mix.name,
        "at": {
            name: {
                "before": _quality(answers, raw, mix, seed),
                "after": _quality(answers, fitted, mix, seed),
                "chance": error_by_chance(
                    probabilities(answers.logits, fitted, mix.of(codes)).max(axis=1),
                    answers.lesions,
                    mix_weights(answers.y_true, answers.lesions, mix.of(codes)),
                    seed=seed,
                ),
            }
            for name, mix in mixes.items()
        },
    }


def _quality(answers: Answers, calibrated: Calibration, mix: CaseMix, seed: int) -> dict[str, Any]:
    """Return how good probabilities are; a class without images has an error and no diagram."""
    truth, codes, shares = answers.y_true, answers.bundle.codes, mix.of(answers.bundle.codes)
    probability, weights = (
        probabilities(answers.logits, calibrated, shares),
        mix_weights(truth, answers.lesions, shares),
    )
    classes = [(code, truth == c, probability[:, c]) for c, code in enumerate(codes)]
    confidence, correct = metrics.top_label(truth, probability)
    bins = metrics.equal_mass_bins(confidence, _bin_count(len(truth), 20), weights)
    mixed = weightings(truth, answers.lesions, seed=seed) * weights
    losses = {"brier": metrics.squared_errors, "log_loss": metrics.log_errors}
    ece_bins = metrics.equal_mass_bins(confidence, weights=weights)
    ece = metrics.calibration_error(confidence, correct, ece_bins, mixed)
    return {
        "ece": sampled_figure(ece, reason="no images"),
        "ece_debiased": debiased_error(ece, reason="no images"),
        **{
            name: sampled_figure(metrics.mean_loss(loss(truth, probability), mixed), reason="no images")
            for name, loss in losses.items()
        },
        "reliability": _points(confidence, correct, bins, weights),
        "classwise_ece": {code: _class_error(positive, values, weights) for code, positive, values in classes},
        "classwise_reliability": {
            code: _class_reliability(positive, values, weights) for code, positive, values in classes if positive.any()
        },
    }


def error_by_chance(confidence: Floats, lesions: Ints, weights: Floats, *, seed: int) -> dict[str, float]:
    """Return the calibration error that exactly correct probabilities would show: `mean`, and `high` (95 %).

    With few images each bin holds few, and its share of correct answers varies. One draw decides for all images of a
    lesion, so they count as one.

    Args:
        confidence: (n,) largest probability; lesions: (n,) lesion numbers from 0; weights: (n,), sum 1.
    """
    bins = metrics.equal_mass_bins(confidence, weights=weights)
    member = (bins[:, None] == np.arange(bins.max() + 1)).astype(np.float64)
    generator, errors = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        right = generator.random(int(lesions.max()) + 1)[lesions] < confidence
        errors.append(float(np.abs((weights * (confidence - right)) @ member).sum()))
    return {"mean": float(np.mean(errors)), "high": float(np.quantile(errors, 0.95))}


def _class_reliability(positive: Bools, probability: Floats, weights: Floats) -> dict[str, list[float]]:
    """Return the points of one class: each bin is expected to hold equally much of it.

    With equally many images in each bin, all but one bin of a rare class would lie at 0.
    """
    order = np.argsort(probability, kind="stable")
    expected = np.cumsum((weights * probability)[order])
    count = _bin_count(int(positive.sum()), 5)
    bins = np.empty(len(order), np.int64)
    share = (expected - (weights * probability)[order] / 2) / max(float(expected[-1]), np.finfo(np.float64).tiny)
    bins[order] = np.minimum(count - 1, share * count)
    return _points(probability, positive, bins, weights)


def _bin_count(n: int, of_each: int) -> int:
    return min(metrics.ECE_BINS, max(1, n // of_each))


def _points(confidence: Floats, correct: Bools, bins: Ints, weights: Floats) -> dict[str, list[float]]:
    rows = [bins == b for b in np.unique(bins)]
    return {
        "confidence": [float(np.average(confidence[row], weights=weights[row])) for row in rows],
        "accuracy": [float(np.average(correct[row], weights=weights[row])) for row in rows],
        "images": [float(row.sum()) for row in rows],
    }


def _class_error(positive: Bools, probability: Floats, weights: Floats) -> float:
    bins = metrics.equal_mass_bins(probability, weights=weights)
    return float(metrics.calibration_error(probability, positive, bins, weights[None])[0])


def trust_sections(answers: Answers, *, seed: int) -> dict[str, Any]:
    """Return sets, operating points, decision curves, statuses and novelty; null where a bundle lacks them."""
    bundle, limits, rule = answers.bundle, answers.limits, answers.bundle.trust.facts.prediction_sets
    weights = mix_weights(answers.y_true, answers.lesions, limits.shares)
    curves = {
        aim: decision_curve(answers.probability, answers.y_true, weights, answers.places(members))
        for aim, members in aims(bundle.codes).items()
    }
    points = []
    for point in (each.as_dict() for each in limits.points):
        fresh = measure_point(
            point, answers.probability, answers.y_true, answers.lesions, bundle.codes, limits.shares, seed=seed
        )
        points.append({key: point[key] for key in ("name", "codes", "threshold", "aimed_at")} | fresh)
    sets, inside = None, answers.inside
    if rule is not None and inside is not None:
        known = Lesions(answers.logits.astype(np.float32), answers.y_true, answers.lesions)
        sets = {**rule.as_dict(), **measure_sets(inside, known, bundle.codes, limits.shares)}
    return {
        "prediction_sets": sets,
        "operating_points": points,
        "referral": None if limits.referral is None else limits.referral.name,
        "decision_curves": curves,
        "status": _statuses(answers, seed),
        "advice": _advice(answers),
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


def _advice(answers: Answers) -> dict[str, Any]:
    """Return how often each advice was given, and how many of these lesions were malignant or premalignant."""
    grave = np.isin(answers.y_true, answers.places(grave_codes(answers.bundle.codes)))
    given = np.array([None if p.advice is None else p.advice.code for p in answers.predictions])
    return {code: {"n": int((given == code).sum()), "grave": int(grave[given == code].sum())} for code in ADVICE}


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
