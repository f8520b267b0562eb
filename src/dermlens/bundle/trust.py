"""What a bundle knows about its own limits, and what that says about one answer: a status, with its reasons.

    rejected    the image is unlike those the model knows, or cannot be read; the probabilities mean nothing
    uncertain   too many diagnoses remain possible, the diagnosis is too improbable, or the framing is doubtful
    ok          none of these

Fitted in `dermlens.evaluation.fit_trust`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from dermlens.bundle.decision import Facts, OperatingPoint, PredictionSets
from dermlens.bundle.novelty import Novelty, NoveltyFacts
from dermlens.bundle.quality import Quality, QualityLimits, faults
from dermlens.diagnoses import DIAGNOSES
from dermlens.text import Figure, percent

NOVEL = {"dermoscopy": ("not_dermoscopic", "This is not a dermoscopic image of a lesion that the model knows.")}
_NOVEL_ELSEWHERE = ("unlike_training", "This image is unlike those that the model was trained on.")


class Answered(Facts, frozen=True):
    """How often one status is given, and how often the diagnosis is right then."""

    share: float
    accuracy: float | None


class Coverage(TypedDict):
    """How often prediction sets hold the truth, and how large they are; null without images."""

    n: int
    n_lesions: int
    coverage: Figure | None
    mean_size: float | None


class SetsMeasured(Coverage):
    """Over all images, and by class."""

    by_size: dict[str, int]
    per_class: dict[str, Coverage]


class Measured(Facts, frozen=True):
    """What the limits reach on the images of a role."""

    role: str
    images: int
    lesions: int
    accuracy: float
    status: dict[str, Answered]
    prediction_sets: SetsMeasured | None


class TrustFacts(Facts, frozen=True):
    """The `trust` object of `bundle.json`; a part is null where there was too little to fit it on.

    Attributes:
        min_confidence: an answer whose diagnosis is less probable is uncertain.
        operating_points: by falling sensitivity for each aim.
        referral: name of the point that `predict` follows.
        fitted_on, measured: the images; None: not fitted, not measured.
        neighbours: how many training lesions `neighbours.npz` names.
    """

    fitted_on: dict[str, int | str] | None
    prediction_sets: PredictionSets | None
    min_confidence: float
    operating_points: tuple[OperatingPoint, ...]
    referral: str | None
    novelty: NoveltyFacts | None
    quality: QualityLimits
    measured: Measured | None
    neighbours: dict[str, int] | None = None
    fitted_in_s: float | None = None


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
    """The limits of one model, ready to judge; `novel` is the reason code and sentence for a novel image."""

    facts: TrustFacts
    novelty: Novelty | None
    novel: tuple[str, str]

    @property
    def sets(self) -> PredictionSets | None:
        return self.facts.prediction_sets

    @property
    def operating_point(self) -> OperatingPoint | None:
        """The point that `predict` follows."""
        return next((point for point in self.facts.operating_points if point.name == self.facts.referral), None)

    @classmethod
    def read(cls, facts: TrustFacts, modality: str, arrays: Mapping[str, npt.NDArray[np.floating]]) -> Trust:
        """Put a bundle's facts and the arrays of `trust.npz` together.

        Raises:
            BundleError, KeyError: the arrays are damaged or missing.
        """
        novelty = None if facts.novelty is None else Novelty.read(facts.novelty, arrays)
        return cls(facts, novelty, NOVEL.get(modality, _NOVEL_ELSEWHERE))

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
        for code, text, unusable in faults(quality, self.facts.quality):
            (rejections if unusable else doubts).append(Reason(code, text))
        if self.sets is not None and set_size is not None and set_size > self.sets.max_size:
            doubts.append(Reason("many_diagnoses_possible", f"{set_size} diagnoses cannot be ruled out."))
        if probability < self.facts.min_confidence:
            doubts.append(Reason("low_confidence", f"Low confidence ({percent(probability)})."))
        if rejections:
            return "rejected", tuple(rejections)  # doubts do not matter then: the answer means nothing
        return ("uncertain" if doubts else "ok"), tuple(doubts)


def grave_codes(codes: Sequence[str]) -> tuple[str, ...]:
    """Return the codes that are known to be malignant or premalignant."""
    known = ((code, DIAGNOSES.get(code)) for code in codes)
    return tuple(code for code, fact in known if fact and fact.malignancy in ("malignant", "premalignant"))
