"""Explanations for the API: which places spoke for a class, as pictures."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.data.images import load_image
from dermlens.errors import ImageError
from dermlens.inference.predict import Prediction, Predictor
from dermlens.serving.problems import Problem, of_image

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Heatmap:
    """What spoke for `code`: relevance float32 (height, width) 0..1, image uint8 RGB (height, width, 3)."""

    prediction: Prediction
    code: str
    logit: float
    relevance: npt.NDArray[np.float32]
    image: Pixels

    def overlay_png(self, alpha: float) -> bytes:
        """Return the image with the relevance over it, `alpha` 0..1 where it is largest, as a PNG."""
        colour = cv2.applyColorMap(_levels(self.relevance), cv2.COLORMAP_INFERNO)[:, :, ::-1]
        share = np.clip(alpha * self.relevance, 0.0, 1.0)[:, :, None]
        return _png(np.round(self.image * (1 - share) + colour * share).astype(np.uint8))

    def relevance_png(self) -> bytes:
        """Return the relevance as a grey PNG, 255 where it is largest."""
        return _png(_levels(self.relevance))

    def as_dict(self, alpha: float) -> dict[str, Any]:
        """Return all of it for JSON; pictures in base64."""
        return {
            "prediction": self.prediction.as_dict(),
            "code": self.code,
            "logit": round(self.logit, 6),
            "width_px": self.relevance.shape[1],
            "height_px": self.relevance.shape[0],
            "relevance_png": base64.b64encode(self.relevance_png()).decode("ascii"),
            "overlay_png": base64.b64encode(self.overlay_png(alpha)).decode("ascii"),
        }


def explain(predictor: Predictor, image: bytes, code: str | None, name: str) -> Heatmap:
    """Answer for one image and say what spoke for a class, the diagnosis unless another is named.

    Raises:
        Problem: the image cannot be read, the class is unknown, or there is no answer.
    """
    if code is not None and code not in predictor.bundle.codes:
        raise Problem(
            "unknown_class", f"The model has no class {code[:40]!r}. It has {', '.join(predictor.bundle.codes)}."
        )
    try:
        return _heatmap(predictor, image, code, name)
    except ImageError as error:
        raise of_image(error) from None


def _heatmap(predictor: Predictor, image: bytes, code: str | None, name: str) -> Heatmap:
    made: Any = getattr(predictor, "explain", None)
    if made is not None:
        found = made(image, code, name=name)
        return Heatmap(found.prediction, found.code, found.logit, found.relevance, found.image)
    prediction = predictor.predict(image, name=name)
    if prediction.error is not None:
        raise of_image(prediction.error)
    chosen = code or prediction.diagnosis_code
    if chosen is None:
        raise Problem("no_answer", "The model gave no answer for this image.")
    return _class_map(predictor, image, prediction, chosen)


def _class_map(predictor: Predictor, image: bytes, prediction: Prediction, code: str) -> Heatmap:
    """Exact class activation map (Zhou et al. 2016, arXiv:1512.04150): feature map times the last layer's weights."""
    pixels = load_image(image, predictor.bundle.input_spec)
    outputs = predictor._runtime.run(pixels[None])  # the only way to the feature map until Predictor.explain is there
    place = predictor.bundle.codes.index(code)
    evidence = outputs.feature_map[0] @ predictor.bundle.head()[0][:, place]
    positive = np.maximum(evidence, 0.0).astype(np.float32)
    peak = float(positive.max())
    share = positive / np.float32(peak) if peak > 0 else positive
    smooth = cv2.resize(share, (pixels.shape[1], pixels.shape[0]), interpolation=cv2.INTER_CUBIC)
    relevance = np.clip(smooth, 0.0, 1.0).astype(np.float32)
    return Heatmap(prediction, code, float(outputs.logits[0][place]), relevance, pixels)


def _levels(relevance: npt.NDArray[np.float32]) -> Pixels:
    levels: Pixels = np.round(np.clip(relevance, 0.0, 1.0) * 255).astype(np.uint8)
    return levels


def _png(pixels: Pixels) -> bytes:
    _, code = cv2.imencode(".png", pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1]))
    return bytes(code.tobytes())
