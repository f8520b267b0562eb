"""Answers as one self-contained HTML page with the images as the model saw them; opens offline, prints well."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2

from dermlens import html
from dermlens.bundle.bundle import Bundle
from dermlens.bundle.card_text import model_facts, warnings
from dermlens.data.images import load_image
from dermlens.diagnoses import DIAGNOSES, DISCLAIMER
from dermlens.errors import ImageError
from dermlens.inference.judge import ADVICE, SYMBOLS, spoken
from dermlens.inference.prediction import Prediction
from dermlens.reporting.answers import (
    ADVICE_STYLE,
    mix_sentence,
    names_of,
    neighbours_words,
    referral_words,
    why_words,
)
from dermlens.reporting.proven import MARKS, Proven
from dermlens.text import percent

THUMBNAIL_PX = 320
ANY_SIZE = 2**40  # the answer was given, so the limits were kept


def write_page(
    answers: Sequence[Prediction], bundle: Bundle, path: Path, *, top: int = 3, proven: Proven | None = None
) -> None:
    """Write the answers as an HTML page; `answers` must name readable paths for their pictures to be shown.

    Args:
        top: how many classes a card shows; the rest is folded in its details.
        proven: what was proven for the images, to show beside the answers.

    Raises:
        StorageError: the file cannot be written.
    """
    failed = sum(answer.error is not None for answer in answers)
    read = [answer for answer in answers if answer.error is None]
    advised = Counter(answer.advice.code for answer in read if answer.advice)
    html.write_page(
        path,
        "answers.html",
        answers=answers,
        bundle=bundle,
        advised={code: advised[code] for code in ADVICE_STYLE if advised[code]},
        short=ADVICE,
        symbols=SYMBOLS,
        spoken=spoken,
        sentences=[mix_sentence(read[0].case_mix), *referral_words(read)] if read else [],
        compared=proven.summary(read) if proven else "",
        verdict=proven.of if proven else lambda answer: None,
        marks=MARKS,
        warnings=warnings(model_facts(bundle.card)),
        disclaimer=DISCLAIMER,
        count=f"{len(answers)} image{'' if len(answers) == 1 else 's'}" + (f", {failed} unreadable" if failed else ""),
        top=top,
        pictures=_pictures,
        known=DIAGNOSES,
        display_name=names_of(bundle),
        file_name=lambda answer: Path(answer.image).name,
        neighbours_words=neighbours_words,
        why_words=why_words,
        percent=lambda share, digits=0: percent(share, digits).replace(
            " ", "\u00a0"
        ),  # the sign stays beside its number
        size_px=THUMBNAIL_PX,
    )


def open_in_browser(path: Path) -> bool:
    """Open the page in a browser; False when there is none, or no screen to show it on."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False  # a text browser would take over the terminal
    return webbrowser.open(path.resolve().as_uri())


def _pictures(answer: Prediction, bundle: Bundle) -> dict[str, str]:
    """Return what it shows -> address: the image as the model saw it and, where one was written, its heat map."""
    found = {}
    with suppress(ImageError):
        spec = replace(bundle.input_spec, size_px=THUMBNAIL_PX)
        pixels = load_image(
            answer.image, spec, frame_aspect=answer.frame_aspect, max_bytes=ANY_SIZE, max_pixels=ANY_SIZE
        )
        _, code = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
        found[f"{Path(answer.image).name}, framed as the model sees it"] = html.data_uri(code.tobytes(), "image/jpeg")
    if found and answer.heatmap and answer.shows_lesion:
        with suppress(OSError):
            words = f"evidence for {answer.diagnosis_name}: the brighter, the more"
            found[words] = html.data_uri(Path(answer.heatmap).read_bytes())
    return found
