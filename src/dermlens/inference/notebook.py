"""Answers, explanations and models as HTML for a notebook: escaped, self-contained, no script, no outside address."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dermlens.bundle.bundle import Bundle
from dermlens.diagnoses import DIAGNOSES, display_name

if TYPE_CHECKING:
    from dermlens.inference.explain import Explanation, Pixels
    from dermlens.inference.prediction import Prediction
from dermlens.diagnoses import DISCLAIMER

SHOWN_CLASSES, SHOWN_ANSWERS, PICTURE_PX = 5, 50, 224
_COLOURS = {"ok": "#1a7f37", "uncertain": "#9a6700", "rejected": "#cf222e", "error": "#cf222e"}
_SMALL = "font-size:85%;opacity:.8"


def prediction_html(answer: Prediction) -> str:
    """Return one answer with its probabilities and reasons."""
    return _block(_answer(answer))


def explanation_html(explanation: Explanation) -> str:
    """Return the image as the network saw it, the same with its heat map, and the answer."""
    name = display_name(explanation.code)
    pictures = _picture(explanation.image, "as the model saw it") + _picture(
        explanation.overlay(), f"what spoke for {name}, the brighter the more"
    )
    return _block(f'<div style="display:flex;flex-wrap:wrap;gap:8px">{pictures}</div>{_answer(explanation.prediction)}')


def answers_html(answers: Sequence[Prediction]) -> str:
    """Return many answers as a table, the first `SHOWN_ANSWERS` of them."""
    head = "".join(f"<th>{name}</th>" for name in ("image", "status", "diagnosis", "probability", "why"))
    rows = "".join(_row(answer) for answer in answers[:SHOWN_ANSWERS])
    left = len(answers) - SHOWN_ANSWERS
    more = f"<p>… and {left} more.</p>" if left > 0 else ""
    return _block(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}")


def model_html(bundle: Bundle) -> str:
    """Return what a model reads, how good it is, and how it is told from others."""
    figure = bundle.card["metrics"]["balanced_accuracy"]
    score = "not known"
    if figure["value"] is not None:
        score = f"{figure['value']:.3f}"
        if figure["low"] is not None:
            score += f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    facts = {
        "reads": bundle.scope,
        "classes": ", ".join(bundle.names),
        "input": f"{bundle.input_spec.size_px} px",
        "balanced accuracy": score + (" (LEAKY: too good)" if bundle.leaky else ""),
        "SHA-256": bundle.sha256,
    }
    rows = "".join(
        f'<tr><th style="text-align:left">{html.escape(key)}</th><td style="text-align:left">{html.escape(value)}</td>'
        "</tr>"
        for key, value in facts.items()
    )
    return _block(f"<b>{html.escape(f'{bundle.name} {bundle.version}')}</b><table>{rows}</table>")


def _block(inner: str) -> str:
    return f'<div class="dermlens">{inner}<p style="{_SMALL}">{html.escape(DISCLAIMER)}</p></div>'


def _answer(answer: Prediction) -> str:
    name = f'<div style="{_SMALL}">{html.escape(answer.image)}</div>'
    if answer.error is not None:
        message = html.escape(f"{answer.error['message']} {answer.error['remedy']}")
        return f"<p>{_status(answer)} <b>cannot be read</b><br>{message}</p>{name}"
    title = "I can’t tell" if answer.status == "rejected" else answer.diagnosis_name or answer.diagnosis_code or ""
    kind = DIAGNOSES[answer.diagnosis_code].malignancy if answer.diagnosis_code in DIAGNOSES else ""
    told = f" ({kind})" if kind and answer.status != "rejected" else ""
    bars = "" if answer.status == "rejected" else "".join(_bar(c, p) for c, p in answer.top(SHOWN_CLASSES))
    why = f"<p>{html.escape(_why(answer))}</p>" if _why(answer) else ""
    return f"<p>{_status(answer)} <b>{html.escape(title)}</b>{told}</p>{why}<table>{bars}</table>{name}"


def _row(answer: Prediction) -> str:
    rejected = answer.status in ("rejected", "error")
    share = "" if rejected or answer.probability is None else f"{answer.probability:.1%}"
    cells = ("" if rejected else answer.diagnosis_name or "", share, _why(answer))
    texts = "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in cells)
    return f'<tr><td style="text-align:left">{html.escape(answer.image)}</td><td>{_status(answer)}</td>{texts}</tr>'


def _why(answer: Prediction) -> str:
    advised = answer.referral is not None and answer.referral["advised"]
    return " ".join(
        [*(reason.text for reason in answer.reasons), *(["To be seen by a specialist."] if advised else [])]
    )


def _status(answer: Prediction) -> str:
    colour = _COLOURS.get(answer.status, "inherit")
    return f'<span style="color:{colour};font-weight:bold">{html.escape(answer.status)}</span>'


def _bar(code: str, probability: float) -> str:
    bar = f'<div style="background:#4078c0;height:.8em;width:{probability * 160:.0f}px"></div>'
    return (
        f'<tr><th style="text-align:left">{html.escape(display_name(code))}</th>'
        f'<td style="min-width:160px">{bar}</td><td>{probability:.1%}</td></tr>'
    )


def _picture(pixels: Pixels, caption: str) -> str:
    _, code = cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]))
    data = base64.b64encode(code.tobytes()).decode("ascii")
    words = html.escape(caption)
    return (
        f'<figure style="margin:0"><img width="{PICTURE_PX}" height="{PICTURE_PX}" alt="{words}" '
        f'src="data:image/png;base64,{data}"><figcaption style="{_SMALL}">{words}</figcaption></figure>'
    )
