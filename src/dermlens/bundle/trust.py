"""What a bundle knows about its own limits beside those that follow from its lesions (`limits.py`).

Fitted in `dermlens.evaluation.fit_trust`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt

from dermlens.bundle.limits import SetRule
from dermlens.bundle.novelty import Novelty, NoveltyFacts
from dermlens.bundle.probabilities import Facts
from dermlens.bundle.quality import Quality, QualityLimits
from dermlens.text import Figure

# Of 13,700 pictures of lesions from five collections 0.1 % were taken for none, of their melanomas 3 in 1,700; of
# everyday pictures that are rejected, three in four (chosen on these pictures; `docs/lab/trust.md`).
FAR = 2.5  # times the novelty threshold: hardly a lesion of any clinic is so far away
STRANGE, LITTLE_SKIN = 1.5, 0.3  # times the threshold, where less than this share of the picture could be skin

Familiarity = Literal["familiar", "unfamiliar", "no_lesion"]


class Answered(Facts, frozen=True):
    """How often one status is given, and how often the diagnosis is right then."""

    share: float
    accuracy: float | None


class Coverage(TypedDict):
    """How often prediction sets hold the truth, and how long they are; null without images."""

    n: int
    n_lesions: int
    coverage: Figure | None
    mean_size: float | None


class SetsMeasured(Coverage):
    """Averaged by the case mix, and by class."""

    by_size: dict[str, int]
    per_class: dict[str, Coverage]


class Measured(Facts, frozen=True):
    """What the limits reach on the images of a role, at the model's own case mix."""

    role: str
    images: int
    lesions: int
    accuracy: float
    status: dict[str, Answered]
    advice: dict[str, int]
    prediction_sets: SetsMeasured | None


class TrustFacts(Facts, frozen=True):
    """The `trust` object of `bundle.json`; a part is null where there was too little to fit it on.

    Attributes:
        sensitivity: of the operating point that answers follow.
        fitted_on, measured: the images; None: not fitted, not measured.
        neighbours: how many training lesions `neighbours.npz` names.
    """

    fitted_on: dict[str, int | str] | None
    prediction_sets: SetRule | None
    sensitivity: float
    novelty: NoveltyFacts | None
    quality: QualityLimits
    measured: Measured | None
    neighbours: dict[str, int] | None = None
    fitted_in_s: float | None = None


@dataclass(frozen=True)
class Trust:
    """The limits of one model that are the same at every case mix."""

    facts: TrustFacts
    novelty: Novelty | None

    @classmethod
    def read(cls, facts: TrustFacts, arrays: Mapping[str, npt.NDArray[np.floating]]) -> Trust:
        """Put a bundle's facts and the arrays of `trust.npz` together.

        Raises:
            BundleError, KeyError: the arrays are damaged or missing.
        """
        return cls(facts, None if facts.novelty is None else Novelty.read(facts.novelty, arrays))

    def familiarity(self, score: float | None, quality: Quality) -> Familiarity:
        """Say whether a picture is like those that the model learned from; if not, whether it shows a lesion at all.

        Args:
            score: its novelty; None where the model has no such score.
        """
        if score is None or self.novelty is None or score <= self.novelty.threshold:
            return "familiar"
        ratio = score / (self.novelty.first_threshold or self.novelty.threshold)
        nothing = ratio > FAR or (ratio > STRANGE and quality.skin_share < LITTLE_SKIN)
        return "no_lesion" if nothing else "unfamiliar"
