"""The answer for one image: data only, the object that `dermlens predict --json` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.bundle.nearest import Neighbour
from dermlens.bundle.trust import Reason
from dermlens.diagnoses import DIAGNOSES
from dermlens.inference.notebook import in_notebook

SCHEMA = "dermlens/prediction/1"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    `probabilities` are calibrated and ordered as the bundle's classes; `diagnosis_code` follows the bundle's decision
    rule and may differ from the largest probability. `status` is "ok", "uncertain", "rejected" or "error", and
    `reasons` say why it is not "ok"; a rejected image keeps its probabilities, which mean nothing then, and has neither
    `malignant_probability` nor `referral`. An error leaves everything empty but `image`, `model`, `reasons` and
    `error`. What the bundle has no facts for is None.

    Attributes:
        prediction_set: the classes that remain possible, by falling probability; see `decision.PredictionSets`.
        malignant_probability: of all malignant and premalignant classes together.
        referral: whether a specialist should see the lesion, and what the operating point reached on unseen lesions.
        novelty: how unlike the training images it is; above `threshold` it is rejected.
        quality: focus, exposure and framing; see `quality.Quality`.
        heatmap: path of its heat map, where one was written.
        views: test-time views that the probabilities are the mean of.
        neighbours: the training lesions that it resembles most, the nearest first; None unless they were asked for.
        logits, embedding: float32 (classes,) and (d,), for programs.
    """

    image: str
    status: str
    diagnosis_code: str | None
    diagnosis_name: str | None
    probability: float | None
    probabilities: dict[str, float]
    decision_rule: str
    model: dict[str, str]
    elapsed_ms: float
    error: dict[str, str] | None = None
    heatmap: str | None = None
    views: int = 1
    logits: np.ndarray | None = None
    embedding: np.ndarray | None = None
    frame_aspect: float | None = None
    reasons: tuple[Reason, ...] = ()
    prediction_set: tuple[str, ...] | None = None
    malignant_probability: float | None = None
    referral: dict[str, Any] | None = None
    novelty: dict[str, Any] | None = None
    quality: dict[str, float] | None = None
    neighbours: tuple[Neighbour, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `dermlens predict --json` prints."""
        diagnosis = None
        if self.diagnosis_code is not None:
            diagnosis = {"code": self.diagnosis_code, "name": self.diagnosis_name}
        return {
            "schema": SCHEMA,
            "image": self.image,
            "status": self.status,
            "diagnosis": diagnosis,
            "probability": _rounded(self.probability),
            "probabilities": {code: round(p, 6) for code, p in self.probabilities.items()},
            "decision_rule": self.decision_rule,
            "model": self.model,
            "elapsed_ms": round(self.elapsed_ms, 2),
            "error": self.error,
            "reasons": [reason.as_dict() for reason in self.reasons],
            "prediction_set": None if self.prediction_set is None else list(self.prediction_set),
            "malignant_probability": _rounded(self.malignant_probability),
            "referral": self.referral,
            "novelty": self.novelty,
            "quality": self.quality,
            **({} if self.heatmap is None else {"heatmap": self.heatmap}),
            **({} if self.views == 1 else {"views": self.views}),
            **({} if self.neighbours is None else {"neighbours": [n.as_dict() for n in self.neighbours]}),
        }

    def top(self, k: int) -> list[tuple[str, float]]:
        """Return the k most probable classes as (code, probability), largest first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:k]

    @property
    def advised(self) -> bool:
        """Whether a referral to a specialist is advised."""
        return self.referral is not None and bool(self.referral["advised"])

    @property
    def malignancy(self) -> str:
        """The kind of its diagnosis ("malignant", "premalignant", "benign"); "" where it is unknown."""
        known = DIAGNOSES.get(self.diagnosis_code or "")
        return known.malignancy if known and self.status != "rejected" else ""

    @property
    def sentences(self) -> str:
        """Why it is not "ok", in words."""
        return " ".join(reason.text for reason in self.reasons)

    def _repr_html_(self) -> str:
        return in_notebook(answers=[self])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
