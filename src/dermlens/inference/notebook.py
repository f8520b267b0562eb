"""Answers, explanations and models as HTML for a notebook: escaped, self-contained, no script, no outside address."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from dermlens.diagnoses import DISCLAIMER, display_name
from dermlens.html import data_uri, render
from dermlens.text import percent

SHOWN_CLASSES, PICTURE_PX = 5, 224


def in_notebook(**values: Any) -> str:
    """Return `templates/notebook.html` with what is given.

    Args:
        values: `answers` (predictions; as a `table`, with how many `more` there are), `explanation`, or the `title`,
            `facts` and `warnings` of a model.
    """
    nothing = {"answers": (), "table": False, "more": 0, "explanation": None, "title": "", "facts": {}, "warnings": ()}
    tools = {"display_name": display_name, "percent": percent, "picture": picture}
    sizes = {"classes": SHOWN_CLASSES, "picture_px": PICTURE_PX}
    return render("notebook.html", disclaimer=DISCLAIMER, **tools, **sizes, **nothing | values)


def picture(pixels: np.ndarray) -> str:
    """Return uint8 RGB (height, width, 3) as an address for `src`, in PNG."""
    _, code = cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]))
    return data_uri(code.tobytes())
