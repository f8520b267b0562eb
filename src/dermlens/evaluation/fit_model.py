"""The calibration of a network, with what else its answers need: fitted on lesions that taught it nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dermlens.bundle.case_mix import CaseMix
from dermlens.bundle.limits import MIN_LESIONS, Lesions
from dermlens.bundle.probabilities import Calibration
from dermlens.data.images import InputSpec
from dermlens.evaluation.calibration import SEPARATED, BiasTest, choose_calibration


@dataclass(frozen=True)
class Fit:
    """What an answer needs beside the graph; `fit_trust.Calibrated`.

    Attributes:
        reason: why the probabilities could not be calibrated; None where they are.
        lesions: how many they were calibrated on.
        bias: whether a bias for each class helped.
    """

    codes: tuple[str, ...]
    input_spec: InputSpec
    calibration: Calibration
    case_mix: CaseMix
    modality: str = "unknown"
    reason: str | None = None
    lesions: int = 0
    bias: BiasTest | None = None

    def calibrated_on(self, known: Lesions, *, seed: int) -> Fit:
        """Return it with temperature and biases fitted at the equal mix, or with the reason why they are not.

        Args:
            known: lesions of the calibrate role; seed: splits them to test the biases.
        """
        count = len(set(known.lesions.tolist()))
        if count < MIN_LESIONS:
            few = f"{count} lesions in the calibrate role, at least {MIN_LESIONS} are needed"
            return replace(self, reason=few, lesions=count)
        calibration, bias = choose_calibration(
            known.logits,
            known.classes,
            known.lesions,
            shares=(1 / len(self.codes),) * len(self.codes),
            training_prior=self.calibration.training_prior,
            seed=seed,
        )
        reason = SEPARATED if calibration.temperature == 1.0 else None
        return replace(self, calibration=calibration, reason=reason, lesions=count, bias=bias)

    def as_dict(self) -> dict[str, object]:
        """Return the fields of `bundle.json` that follow from it."""
        return {
            "calibration": self.calibration.as_dict(),
            "calibration_fit": {
                "fitted": self.reason is None,
                "reason": self.reason,
                "lesions": self.lesions,
                "bias": None if self.bias is None else self.bias.as_dict(),
            },
            "case_mix": self.case_mix.as_dict(),
        }
