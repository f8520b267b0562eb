"""Explanations for the API: which places spoke for a class, as pictures."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dermlens.errors import ImageError
from dermlens.inference.explain import Explanation
from dermlens.inference.predict import Predictor
from dermlens.serving.problems import Problem, of_image


@dataclass(frozen=True)
class Heatmap:
    """An explanation as the API sends it."""

    explanation: Explanation

    def overlay_png(self, alpha: float) -> bytes:
        """Return the image with the relevance over it, `alpha` 0..1 where it is largest, as a PNG."""
        return self.explanation.as_png(alpha)

    def relevance_png(self) -> bytes:
        """Return the relevance as a grey PNG, 255 where it is largest."""
        _, code = cv2.imencode(".png", np.round(self.explanation.relevance * 255).astype(np.uint8))
        return bytes(code.tobytes())

    def as_dict(self, alpha: float) -> dict[str, Any]:
        """Return all of it for JSON; pictures in base64."""
        found = self.explanation
        return {
            "prediction": found.prediction.as_dict(),
            "code": found.code,
            "logit": round(found.logit, 6),
            "width_px": found.relevance.shape[1],
            "height_px": found.relevance.shape[0],
            "relevance_png": base64.b64encode(self.relevance_png()).decode("ascii"),
            "overlay_png": base64.b64encode(self.overlay_png(alpha)).decode("ascii"),
        }


def explain(predictor: Predictor, image: bytes, code: str | None, name: str) -> Heatmap:
    """Answer for one image and say what spoke for a class, the diagnosis unless another is named.

    Raises:
        Problem: the image cannot be read, or the class is unknown.
    """
    if code is not None and code not in predictor.bundle.codes:
        raise Problem(
            "unknown_class", f"The model has no class {code[:40]!r}. It has {', '.join(predictor.bundle.codes)}."
        )
    try:
        return Heatmap(predictor.explain(image, code, name=name))
    except ImageError as error:
        raise of_image(error) from None
