"""What a bundle knows about its own limits, and what that says about one answer: a status, with its reasons.

    rejected    the picture is unlike those the model knows, or cannot be read; the probabilities mean nothing
    uncertain   too many diagnoses remain possible, the diagnosis is too improbable, or the framing is doubtful
    ok          none of these

Fitted in `dermlens.evaluation.fit_trust`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dermlens.bundle.decision import OperatingPoint, PredictionSets
from dermlens.bundle.novelty import Novelty
from dermlens.bundle.quality import Quality, QualityLimits, faults
from dermlens.diagnoses import DIAGNOSES

NOVEL = {
    "dermoscopy": (
        "not_dermoscopic",
        "This does not look like a dermoscopic picture of a lesion the model knows.",
    ),
}
NOT_FITTED: Mapping[str, Any] = {
    "fitted_on": None,
    "prediction_sets": None,
    "min_confidence": 0.0,
    "operating_points": [],
    "referral": None,
    "novelty": None,
    "quality": QualityLimits(0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0).as_dict(),
    "measured": None,
    "neighbours": None,
}
"""The `trust` object of a bundle until its limits are fitted: they pass every picture."""
_NOVEL_ELSEWHERE = ("unlike_training", "This does not look like the pictures that the model learned from.")


@dataclass(frozen=True)
class Reason:
    """Why an answer is not "ok": a stable snake_case code for programs, a sentence for people."""

    code: str
    text: str

    def as_dict(self) -> dict[str, str]:
        """Return `{"code", "text"}`."""
        return {"code": self.code, "text": self.text}


@dataclass(frozen=True)
class Trust:
    """The fitted limits of one model; each part may be missing where there was too little to fit it on.

    Attributes:
        min_confidence: an answer whose diagnosis is less probable is uncertain.
        operating_points: by falling sensitivity for each aim.
        referral: name of the point that `predict` follows.
        novel: reason code and words for a novel image.
    """

    sets: PredictionSets | None
    min_confidence: float
    operating_points: tuple[OperatingPoint, ...]
    referral: str | None
    novelty: Novelty | None
    quality: QualityLimits
    novel: tuple[str, str]

    @property
    def operating_point(self) -> OperatingPoint | None:
        """The point that `predict` follows."""
        return next((point for point in self.operating_points if point.name == self.referral), None)

    @classmethod
    def read(cls, card: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.floating]]) -> Trust:
        """Read a bundle's facts.

        Raises:
            BundleError, KeyError, TypeError, ValueError: they are damaged.
        """
        facts = card["trust"]
        sets, novelty = facts["prediction_sets"], facts["novelty"]
        return cls(
            sets=None if sets is None else PredictionSets.from_dict(sets),
            min_confidence=float(facts["min_confidence"]),
            operating_points=tuple(OperatingPoint.from_dict(point) for point in facts["operating_points"]),
            referral=facts["referral"],
            novelty=None if novelty is None else Novelty.read(novelty, arrays),
            quality=QualityLimits.from_dict(facts["quality"]),
            novel=NOVEL.get(str(card["modality"]), _NOVEL_ELSEWHERE),
        )

    def judge(
        self, quality: Quality, novelty: float | None, set_size: int | None, probability: float
    ) -> tuple[str, tuple[Reason, ...]]:
        """Return the status of one answer and the reasons for it, the gravest first.

        Args:
            novelty: the image's score; set_size: classes in the prediction set; None where there is none.
            probability: of the named diagnosis.
        """
        rejections: list[Reason] = []
        doubts: list[Reason] = []
        if novelty is not None and self.novelty is not None and novelty > self.novelty.threshold:
            rejections.append(Reason(*self.novel))
        for code, text, unusable in faults(quality, self.quality):
            (rejections if unusable else doubts).append(Reason(code, text))
        doubts += self._doubts(set_size, probability)
        if rejections:
            return "rejected", tuple(rejections)  # a doubt about an answer that means nothing is no news
        return ("uncertain" if doubts else "ok"), tuple(doubts)

    def _doubts(self, set_size: int | None, probability: float) -> Iterator[Reason]:
        if self.sets is not None and set_size is not None and set_size > self.sets.max_size:
            yield Reason("many_diagnoses_possible", f"{set_size} diagnoses remain possible.")
        if probability < self.min_confidence:
            yield Reason("low_confidence", f"The diagnosis is unsure: its probability is {probability:.0%}.")


def grave_codes(codes: Sequence[str]) -> tuple[str, ...]:
    """Return the codes that are known to be malignant or premalignant."""
    known = ((code, DIAGNOSES.get(code)) for code in codes)
    return tuple(code for code, fact in known if fact and fact.malignancy in ("malignant", "premalignant"))
