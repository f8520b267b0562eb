"""What an answer says beside its probabilities: status and why, what cannot be ruled out, and what to do.

    rejected    no lesion, an unusable picture, or one that is unlike those the model knows
    uncertain   too many diagnoses remain possible, or the first is too improbable
    ok          none of these

The advice is the first that holds: take it again, have it seen, refer, no referral; or why there is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from dermlens.bundle.limits import MIN_LESIONS, Limits, OperatingPoint, grave_codes, order_of
from dermlens.bundle.novelty import METHOD, Novelty
from dermlens.bundle.quality import Quality, faults
from dermlens.bundle.trust import Trust
from dermlens.diagnoses import display_name
from dermlens.text import percent

NAMED = 3  # diagnoses between which an uncertain answer cannot decide
ADVICE = {
    "retake": "Take the picture again",
    "see_clinician": "Have a clinician see it",
    "refer": "Refer to a specialist",
    "no_referral": "No referral",
    "not_assessed": "Not assessed",
}
"""Every advice and its short form; the order is that in which they are tried."""
SYMBOLS = {"retake": "↻", "see_clinician": "◆", "refer": "▲", "no_referral": "○", "not_assessed": "–"}
"""A sign for each advice beside its colour, which not everybody sees."""

_ADVISED = {"refer": True, "see_clinician": True, "no_referral": False}


@dataclass(frozen=True)
class Reason:
    """What is to be known of an answer: a stable snake_case code for programs, a sentence for people."""

    code: str
    text: str

    def as_dict(self) -> dict[str, str]:
        """Return `{"code", "text"}`."""
        return {"code": self.code, "text": self.text}


def spoken(advice: Reason) -> tuple[str, str]:
    """Return what to do, and what there is to say beside it ("" where there is nothing), without the picture's figures.

    So answers with the same advice have the same words.
    """
    first, stop, rest = _FIGURES.sub("", advice.text).partition(". ")
    return (f"{first}." if stop else first), rest


_FIGURES = re.compile(r" \(malignant or premalignant: [^)]*\)")


@dataclass(frozen=True)
class Scope:
    """What of a model an answer is judged by, beside its limits."""

    codes: tuple[str, ...]
    trust: Trust
    modality: str


class Judgement(TypedDict):
    """The fields of a `Prediction` that follow from the bundle's limits."""

    status: str
    why: str
    reasons: tuple[Reason, ...]
    advice: Reason
    prediction_set: tuple[str, ...] | None
    malignant_probability: float | None
    referral: dict[str, Any]
    novelty: dict[str, Any] | None
    quality: dict[str, float]


def judge(
    scope: Scope, limits: Limits, probability: npt.NDArray[np.float64], novelty: float | None, quality: Quality
) -> Judgement:
    """Judge one answer.

    Args:
        probability: (classes,) at the case mix of `limits`.
        novelty: of the picture; None where the model has no such score.
    """
    codes, trust, order = scope.codes, scope.trust, order_of(probability[None])[0]
    inside = limits.sets(probability[None])
    possible = None if inside is None else tuple(codes[c] for c in order if inside[0, c])
    grave = grave_codes(codes)
    malignant = float(sum(probability[codes.index(code)] for code in grave)) if grave else None
    seen = faults(quality, trust.facts.quality)
    unusable, framing = ([Reason(code, text) for code, text, bad in seen if bad == side] for side in (True, False))
    familiarity = trust.familiarity(novelty, quality)
    rejections = [*unusable, *([Reason(familiarity, _WHY[familiarity])] if familiarity != "familiar" else [])]
    if familiarity == "no_lesion":
        rejections.reverse()
    doubts = _doubts(limits, probability, possible)
    if rejections:
        status, why = "rejected", rejections[0].text
        advice = _rejected(rejections[0].code, scope.modality)
    else:
        status = "uncertain" if doubts else "ok"
        why = f"It cannot decide between {_listed(_between(codes, order, possible), 'and')}." if doubts else _OK
        advice = _referral_advice(codes, limits, probability, possible or ())
        if framing:
            advice = Reason(advice.code, " ".join([advice.text, *(reason.text for reason in framing)]))
    return Judgement(
        status=status,
        why=why,
        reasons=tuple(rejections or [*doubts, *framing]),
        advice=advice,
        prediction_set=possible,
        malignant_probability=None if rejections else malignant,
        referral=_referral(limits.referral, advice.code),
        novelty=_novelty(trust.novelty, novelty),
        quality=quality.as_dict(),
    )


_OK = "The picture is usable and familiar, and the first diagnosis is probable enough to be named."
_WHY = {
    "no_lesion": "No skin lesion could be found in this picture.",
    "unfamiliar": "This picture is unlike those that the model learned from.",
}


def _doubts(limits: Limits, probability: npt.NDArray[np.float64], possible: Sequence[str] | None) -> list[Reason]:
    doubts = []
    if possible is not None and len(possible) > limits.max_set:
        doubts.append(Reason("many_diagnoses_possible", f"{len(possible)} diagnoses cannot be ruled out."))
    if (share := float(probability.max())) < limits.min_confidence:
        words = (
            f"The most probable diagnosis has {percent(share)}; below {percent(limits.min_confidence)} it is uncertain."
        )
        doubts.append(Reason("low_confidence", words))
    return doubts


def _between(codes: Sequence[str], order: Sequence[int], possible: Sequence[str] | None) -> list[str]:
    """Name the first two or three diagnoses, no more than cannot be ruled out."""
    count = min(NAMED, len(possible or codes))
    return [display_name(codes[c]) for c in order[:count]]


def _rejected(code: str, modality: str) -> Reason:
    how = " through a dermatoscope" if modality == "dermoscopy" else ""
    if code == "no_lesion":
        words = f"Photograph one skin lesion{how}; it should fill about half of the picture. Or have the lesion seen."
        return Reason("retake", words)
    if code == "unfamiliar":
        words = (
            "Have a clinician see the lesion. The model cannot judge this picture; the lesion may be harmless or "
            "dangerous."
        )
        return Reason("see_clinician", words)
    return Reason("retake", "Take the picture again, or have the lesion seen.")


def _referral_advice(
    codes: Sequence[str], limits: Limits, probability: npt.NDArray[np.float64], possible: Sequence[str]
) -> Reason:
    point = limits.referral
    if point is None:
        return Reason("not_assessed", _no_point(codes))
    share = float(sum(probability[codes.index(code)] for code in point.codes))
    found, limit = f"malignant or premalignant: {percent(share, 1)}", percent(point.threshold, 1)
    if share < point.threshold and codes[int(probability.argmax())] in point.codes:
        return Reason("refer", f"Refer to a specialist: the first diagnosis is one to be seen ({found}).")
    if share >= point.threshold:
        return Reason("refer", f"Refer to a specialist ({found}; the limit is {limit}).")
    words = f"No referral by this picture alone ({found}; the limit is {limit}{_reached(point)})."
    grave = [display_name(code) for code in possible if code in point.codes]
    if grave:
        words += (
            f" But {_listed(grave, 'and')} cannot be ruled out: have the lesion seen if it is new, grows, changes, "
            "itches or bleeds."
        )
    return Reason("no_referral", words)


def _reached(point: OperatingPoint) -> str:
    sensitivity, specificity = point.sensitivity["value"], point.specificity["value"]
    if sensitivity is None or specificity is None:
        return "; not measured on other lesions"
    return f"; on unseen lesions its sensitivity is {percent(sensitivity)}, its specificity {percent(specificity)}"


def _no_point(codes: Sequence[str]) -> str:
    grave = grave_codes(codes)
    if not grave:
        return "No advice on referral: the model has no malignant class."
    if len(grave) == len(codes):
        return "No advice on referral: every class of the model is malignant or premalignant."
    few = f"fewer than {MIN_LESIONS} malignant or {MIN_LESIONS} other lesions"
    return f"No advice on referral: the model was fitted on {few}."


def _referral(point: OperatingPoint | None, advice: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"operating_point": None, "threshold": None, "sensitivity": None, "specificity": None}
    if point is not None:
        facts = {
            "operating_point": point.name,
            "threshold": round(point.threshold, 6),
            "sensitivity": _rounded(point.sensitivity["value"]),
            "specificity": _rounded(point.specificity["value"]),
        }
    return {"advised": _ADVISED.get(advice), **facts}


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _novelty(novelty: Novelty | None, score: float | None) -> dict[str, Any] | None:
    if novelty is None or score is None:
        return None
    return {"score": round(score, 4), "threshold": round(novelty.threshold, 4), "method": METHOD}


def _listed(names: Sequence[str], last: str) -> str:
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else names[0]
