"""Why this diagnosis: the exact class activation map, from the same forward pass that gave the answer.

The last layer is linear over the spatial mean of the feature map, so each logit is the mean of a map plus a bias
(Zhou et al. 2016, arXiv:1512.04150). Nothing is approximated: no gradients, no TensorFlow, no second model.
A map shows which parts of the image are evidence for a class; it does not say that they are medically relevant.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.errors import os_errors
from dermlens.inference.notebook import in_notebook
from dermlens.inference.prediction import Prediction

Float32s = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Explanation:
    """The evidence for one class in one image.

    Attributes:
        prediction: the answer for the image.
        code: the class that is explained, the diagnosis unless another was asked for.
        logit: the class's logit; `map.mean() + bias`.
        bias: the class's share of the logit that does not depend on the image.
        map: float32 (h, w), evidence at the resolution of the feature map; above 0 speaks for the class.
        relevance: float32 (height, width) 0..1 at image size: the positive evidence, as a share of its largest value.
        image: uint8 RGB (height, width, 3), the image as the network saw it.
    """

    prediction: Prediction
    code: str
    logit: float
    bias: float
    map: Float32s
    relevance: Float32s
    image: Pixels

    def overlay(self, alpha: float = 0.55) -> Pixels:
        """Return the image with the relevance laid over it in colour, uint8 RGB (height, width, 3).

        Args:
            alpha: 0 (the image alone) to 1; how strongly the most relevant place is coloured. Where nothing speaks
                for the class the image stays as it is.
        """
        levels = np.round(self.relevance * 255).astype(np.uint8)
        colour = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[:, :, ::-1].astype(np.float32)
        share = (np.clip(alpha, 0.0, 1.0) * self.relevance)[:, :, None]
        mixed = self.image * (1 - share) + colour * share
        return np.asarray(np.round(mixed), np.uint8)

    def as_png(self, alpha: float = 0.55) -> bytes:
        """Return the overlay as the bytes of a PNG file."""
        _, code = cv2.imencode(".png", np.ascontiguousarray(self.overlay(alpha)[:, :, ::-1]))
        return bytes(code.tobytes())

    def _repr_html_(self) -> str:
        return in_notebook(answers=[self.prediction], explanation=self)


def relevance_of(evidence: Float32s, size: tuple[int, int]) -> Float32s:
    """Return the positive evidence as a share of its largest value, upsampled: float32 (height, width), 0..1.

    All zero where nothing speaks for the class.
    """
    positive = np.maximum(evidence, 0.0)
    peak = float(positive.max())
    if peak <= 0.0:
        return np.zeros(size, np.float32)
    smooth = cv2.resize(positive / np.float32(peak), size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0.0, 1.0).astype(np.float32)


def explain(
    prediction: Prediction,
    pixels: Pixels,
    feature_map: npt.NDArray[np.floating],
    head: tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]],
    code: str,
    index: int,
) -> Explanation:
    """Put an explanation together from one forward pass.

    Args:
        pixels: uint8 RGB (height, width, 3) that went into the network.
        feature_map: (h, w, d) that came out of it.
        head: weights (d, classes) and bias (classes,) of the last layer.
        code, index: the class, by name and by place.
    """
    weights, bias = head
    evidence: Float32s = (feature_map @ weights[:, index]).astype(np.float32)
    offset = float(bias[index])
    return Explanation(
        prediction=prediction,
        code=code,
        logit=float(evidence.mean(dtype=np.float64)) + offset,
        bias=offset,
        map=evidence,
        relevance=relevance_of(evidence, (pixels.shape[0], pixels.shape[1])),
        image=pixels,
    )


class HeatmapFolder:
    """A folder that takes the overlays of explanations as `<image>_<code>.png`.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()
        with self._refusal():
            folder.mkdir(parents=True, exist_ok=True)

    def write(self, explanation: Explanation) -> Path:
        """Write one overlay and return its path; images of the same name get a number.

        Raises:
            StorageError: no space or no permission.
        """
        stem = f"{Path(explanation.prediction.image).stem or 'image'}_{explanation.code}".replace("/", "_")
        name, number = stem, 2
        while name in self._taken:
            name, number = f"{stem}_{number}", number + 1
        self._taken.add(name)
        path = self._folder / f"{name}.png"
        with self._refusal():
            path.write_bytes(explanation.as_png())
        return path

    def _refusal(self) -> AbstractContextManager[None]:
        remedy = "Choose another folder for --heatmap, or free some space."
        return os_errors(f"Heat maps could not be written to {self._folder}", remedy)
