"""The answer for one image: data only, the object that `dermlens predict --json` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.bundle.case_mix import CaseMix
from dermlens.bundle.nearest import Neighbour
from dermlens.bundle.quality import Quality
from dermlens.diagnoses import DIAGNOSES
from dermlens.inference.judge import NAMED, Reason
from dermlens.inference.notebook import in_notebook

SCHEMA = "dermlens/prediction/2"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    `diagnosis_code` is the most probable class at `case_mix`, the first of `probabilities` and of `prediction_set`.
    `status` is "ok", "uncertain", "rejected" or "error". A rejected image keeps its probabilities, which are not to be
    relied on, and has no `malignant_probability`. An error leaves everything empty but `image`, `model`, `why`,
    `reasons` and `error`. What the bundle has no facts for is None.

    Attributes:
        probabilities: code -> share, by falling probability.
        case_mix: how common each diagnosis is beforehand.
        why: one sentence: why it has this status.
        advice: what to do; its code is one of `judge.ADVICE`. None for an error only.
        reasons: every reason for the status and every note on the picture.
        prediction_set: the classes that cannot be ruled out, by falling probability.
        malignant_probability: of all malignant and premalignant classes together.
        referral: whether a person should see the lesion, and what the operating point reaches on unseen lesions.
        novelty: how unlike the training images it is; above `threshold` it is rejected.
        quality: focus, exposure and framing; see `quality.Quality`.
        heatmap: path of its heat map, where one was written.
        views: test-time views that the probabilities are the mean of.
        neighbours: the training lesions that it resembles most, the nearest first; None unless they were asked for.
        logits, embedding: float32 (classes,) and (d,), for programs; look: the quality as it was measured.
    """

    image: str
    status: str
    why: str
    diagnosis_code: str | None
    diagnosis_name: str | None
    probability: float | None
    probabilities: dict[str, float]
    case_mix: CaseMix
    model: dict[str, str]
    elapsed_ms: float
    error: dict[str, str] | None = None
    heatmap: str | None = None
    views: int = 1
    logits: np.ndarray | None = None
    embedding: np.ndarray | None = None
    look: Quality | None = None
    frame_aspect: float | None = None
    reasons: tuple[Reason, ...] = ()
    advice: Reason | None = None
    prediction_set: tuple[str, ...] | None = None
    malignant_probability: float | None = None
    referral: dict[str, Any] | None = None
    novelty: dict[str, Any] | None = None
    quality: dict[str, float] | None = None
    neighbours: tuple[Neighbour, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `dermlens predict --json` prints; `docs/answer.md` tells each field."""
        diagnosis = None
        if self.diagnosis_code is not None:
            diagnosis = {"code": self.diagnosis_code, "name": self.diagnosis_name}
        shares = {code: round(share, 6) for code, share in self.case_mix.shares.items()}
        return {
            "schema": SCHEMA,
            "image": self.image,
            "status": self.status,
            "why": self.why,
            "advice": None if self.advice is None else self.advice.as_dict(),
            "diagnosis": diagnosis,
            "probability": _rounded(self.probability),
            "probabilities": {code: round(p, 6) for code, p in self.probabilities.items()},
            "case_mix": {"name": self.case_mix.name, "shares": shares},
            "prediction_set": None if self.prediction_set is None else list(self.prediction_set),
            "malignant_probability": _rounded(self.malignant_probability),
            "referral": self.referral,
            "reasons": [reason.as_dict() for reason in self.reasons],
            "novelty": self.novelty,
            "quality": self.quality,
            "model": self.model,
            "elapsed_ms": round(self.elapsed_ms, 2),
            "error": self.error,
            **({} if self.heatmap is None else {"heatmap": self.heatmap}),
            **({} if self.views == 1 else {"views": self.views}),
            **({} if self.neighbours is None else {"neighbours": [n.as_dict() for n in self.neighbours]}),
        }

    def top(self, k: int) -> list[tuple[str, float]]:
        """Return the k most probable classes as (code, probability), largest first."""
        return list(self.probabilities.items())[:k]

    @property
    def between(self) -> list[tuple[str, float]]:
        """The two or three classes between which an uncertain answer cannot decide, as (code, probability)."""
        if self.status != "uncertain":
            return []
        return self.top(min(NAMED, len(self.prediction_set or self.probabilities)))

    @property
    def advised(self) -> bool:
        """Whether a person should see the lesion: the advice is `refer` or `see_clinician`."""
        return self.referral is not None and bool(self.referral["advised"])

    @property
    def shows_lesion(self) -> bool:
        """Whether its probabilities may be shown: it is readable, or a rejected picture of what looks like skin."""
        return self.error is None and (self.status != "rejected" or (self.advice or Reason("", "")).code != "retake")

    @property
    def malignancy(self) -> str:
        """The kind of its diagnosis ("malignant", "premalignant", "benign"); "" where it is unknown."""
        known = DIAGNOSES.get(self.diagnosis_code or "")
        return known.malignancy if known and self.status != "rejected" else ""

    def _repr_html_(self) -> str:
        return in_notebook(answers=[self])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
