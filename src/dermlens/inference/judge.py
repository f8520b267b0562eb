"""What an answer says beside its diagnosis: status, set, referral, novelty, quality; one batch at a time."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from dermlens.bundle.bundle import Bundle
from dermlens.bundle.novelty import METHOD
from dermlens.bundle.quality import measure
from dermlens.bundle.trust import Reason, Trust, grave_codes
from dermlens.inference.runtime import Outputs


class Judgement(TypedDict):
    """The fields of a `Prediction` that follow from the bundle's trust facts."""

    status: str
    reasons: tuple[Reason, ...]
    prediction_set: tuple[str, ...] | None
    malignant_probability: float | None
    referral: dict[str, Any] | None
    novelty: dict[str, Any] | None
    quality: dict[str, float] | None


def judge(
    bundle: Bundle,
    pixels: npt.NDArray[np.uint8],
    outputs: Outputs,
    probability: npt.NDArray[np.float64],
    decisions: npt.NDArray[np.int64],
) -> list[Judgement]:
    """Judge the answers of one batch.

    Args:
        pixels: (n, height, width, 3) as the network saw them; outputs: what came out.
        probability: (n, classes), calibrated; decisions: (n,) classes.
    """
    grave = [bundle.codes.index(code) for code in grave_codes(bundle.codes)]
    malignant = [float(row[grave].sum()) if grave else None for row in probability]
    trust = bundle.trust
    novelty = None if trust.novelty is None else trust.novelty.score(outputs.embedding)
    sets = _sets(bundle, trust, probability, decisions)
    judgements = []
    for row, decision in enumerate(decisions):
        quality = measure(pixels[row])
        score = None if novelty is None else float(novelty[row])
        size = None if sets is None else len(sets[row])
        status, reasons = trust.judge(quality, score, size, float(probability[row, decision]))
        meant = status != "rejected"  # the probabilities of a rejected image mean nothing
        judgements.append(
            Judgement(
                status=status,
                reasons=reasons,
                prediction_set=None if sets is None else sets[row],
                malignant_probability=malignant[row] if meant else None,
                referral=_referral(bundle, probability[row]) if meant else None,
                novelty=_novelty(trust, score),
                quality=quality.as_dict(),
            )
        )
    return judgements


def _sets(
    bundle: Bundle, trust: Trust, probability: npt.NDArray[np.float64], decisions: npt.NDArray[np.int64]
) -> list[tuple[str, ...]] | None:
    if trust.sets is None:
        return None
    inside = trust.sets.apply(probability, bundle.calibration.prior, decisions)
    order = np.argsort(-probability, axis=1, kind="stable")
    return [tuple(bundle.codes[c] for c in order[row] if inside[row, c]) for row in range(len(inside))]


def _referral(bundle: Bundle, probability: npt.NDArray[np.float64]) -> dict[str, Any] | None:
    point = bundle.trust.operating_point
    if point is None:
        return None
    total = sum(float(probability[bundle.codes.index(code)]) for code in point.codes)
    return {
        "advised": total >= point.threshold,
        "operating_point": point.name,
        "threshold": round(point.threshold, 6),
        "sensitivity": _rounded(point.sensitivity["value"]),
        "specificity": _rounded(point.specificity["value"]),
    }


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _novelty(trust: Trust, score: float | None) -> dict[str, Any] | None:
    if trust.novelty is None or score is None:
        return None
    return {"score": round(score, 4), "threshold": round(trust.novelty.threshold, 4), "method": METHOD}
