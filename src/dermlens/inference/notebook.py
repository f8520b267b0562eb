"""Answers, explanations and models as HTML for a notebook: escaped, self-contained, no script, no outside address."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from dermlens.bundle.case_mix import mix_words
from dermlens.diagnoses import DISCLAIMER, display_name
from dermlens.html import data_uri, render
from dermlens.inference.judge import ADVICE, SYMBOLS
from dermlens.text import percent

SHOWN_CLASSES, PICTURE_PX = 5, 224
TONES = {
    "refer": "#cf222e",
    "see_clinician": "#9a6700",
    "retake": "#0969da",
    "no_referral": "#1a7f37",
    "not_assessed": "inherit",
}
"""The colour of each advice; on light and on dark."""


def in_notebook(**values: Any) -> str:
    """Return `templates/notebook.html` with what is given.

    Args:
        values: `answers` (predictions; as a `table`, with how many `more` there are), `explanation`, or the `title`,
            `facts` and `warnings` of a model.
    """
    nothing = {"answers": (), "table": False, "more": 0, "explanation": None, "title": "", "facts": {}, "warnings": ()}
    tools = {"display_name": display_name, "percent": percent, "picture": picture, "mix_words": mix_words}
    signs = {"short": ADVICE, "symbols": SYMBOLS, "tones": TONES}
    sizes = {"classes": SHOWN_CLASSES, "picture_px": PICTURE_PX}
    return render("notebook.html", disclaimer=DISCLAIMER, **tools, **signs, **sizes, **nothing | values)


def picture(pixels: np.ndarray) -> str:
    """Return uint8 RGB (height, width, 3) as an address for `src`, in PNG."""
    _, code = cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]))
    return data_uri(code.tobytes())
