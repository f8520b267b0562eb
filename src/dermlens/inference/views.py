"""Test-time views: one image looked at from several sides, and the answers averaged.

A lesion has no up and no left, so its quarter turns and their mirror images are as good a picture of it as the one that
was taken. The mean of the class probabilities over them is steadier than any single one, at the cost of a pass each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dermlens.errors import UsageError
from dermlens.inference.decision import softmax
from dermlens.inference.runtime import Outputs

VIEWS = (1, 2, 4, 8)
Run = Callable[[np.ndarray], Outputs]


def check_views(views: int) -> int:
    """Return `views`.

    Raises:
        UsageError: it is not one of `VIEWS`.
    """
    if views not in VIEWS:
        raise UsageError(
            f"Test-time views must be {', '.join(map(str, VIEWS[:-1]))} or {VIEWS[-1]}: got {views}.",
            remedy="Take 1 for the image as it is, 4 for its quarter turns, 8 for their mirror images too.",
            code="views",
        )
    return views


def turned(pixels: np.ndarray, view: int) -> np.ndarray:
    """Return a view of uint8 squares (n, s, s, 3): 0 as they are, 1 half a turn, 2-3 quarter turns, 4-7 mirrored."""
    quarters = (0, 2, 1, 3)[view % 4]
    mirrored = pixels[:, :, ::-1] if view >= 4 else pixels
    return np.ascontiguousarray(np.rot90(mirrored, quarters, axes=(1, 2)))


def run_views(run: Run, pixels: np.ndarray, views: int) -> Outputs:
    """Run `views` views of uint8 pixels (n, s, s, 3), each by a call of `run`.

    Returns:
        Embedding and feature map of the image as it is, which novelty and heat maps need. With more than one view the
        logits are the logarithm of the mean probability, so that calibration and decision rule apply as they are.
    """
    first = run(pixels)
    if views == 1:
        return first
    total = softmax(first.logits.astype(np.float64))
    for view in range(1, views):
        total += softmax(run(turned(pixels, view)).logits.astype(np.float64))
    logits = np.log(np.maximum(total / views, 1e-30)).astype(np.float32)
    return Outputs(logits, first.embedding, first.feature_map)
