"""Answers as one self-contained HTML page with the images as the model saw them; opens offline, prints well."""

from __future__ import annotations

import base64
import html
import os
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from string import Template

import cv2

from dermlens.bundle.bundle import Bundle
from dermlens.data.images import load_image
from dermlens.diagnoses import DIAGNOSES, DISCLAIMER, display_name
from dermlens.errors import ImageError, StorageError
from dermlens.inference.prediction import Prediction
from dermlens.reporting.terminal import neighbours_words, percent, referral_words, shown

THUMBNAIL_PX = 320
ANY_SIZE = 2**40  # the answer was given, so the limits were kept


def write_page(answers: Sequence[Prediction], bundle: Bundle, path: Path, *, top: int = 3) -> None:
    """Write the answers as an HTML page; `answers` must name readable paths for their pictures to be shown.

    Raises:
        StorageError: the file cannot be written.
    """
    template = Template(resources.files("dermlens.reporting").joinpath("templates/answers.html").read_text("utf-8"))
    failed = sum(answer.error is not None for answer in answers)
    page = template.substitute(
        scope=html.escape(bundle.scope),
        disclaimer=html.escape(DISCLAIMER),
        model=html.escape(f"{bundle.name} {bundle.version}"),
        rule=html.escape(_rule(bundle)),
        referral=_referral(bundle),
        count=f"{len(answers)} image{'' if len(answers) == 1 else 's'}" + (f", {failed} unreadable" if failed else ""),
        leaky='<p class="alarm">Leaky model: its scores are too good.</p>' if bundle.leaky else "",
        cards="\n".join(_card(answer, bundle, top) for answer in answers),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StorageError(
            f"The page could not be written to {path}: {error.strerror or error}.",
            remedy="Choose another file for --html, or free some space.",
        ) from error


def open_in_browser(path: Path) -> bool:
    """Open the page in a browser; False when there is none, or no screen to show it on."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False  # a text browser would take over the terminal
    return webbrowser.open(path.resolve().as_uri())


def _rule(bundle: Bundle) -> str:
    bars = "calibrated probabilities" if bundle.calibrated else "probabilities that are NOT calibrated"
    if bundle.decision_rule.kind == "prior_adjusted":
        return (
            "The diagnosis weighs all classes alike, so that a rare disease is not overlooked; the bars are "
            f"{bars}, so the two may differ."
        )
    return f"The diagnosis is the most probable class; the bars are {bars}."


def _referral(bundle: Bundle) -> str:
    point = bundle.trust.operating_point
    return "" if point is None else f"<p>A specialist is {html.escape(referral_words(point))}</p>"


def _card(answer: Prediction, bundle: Bundle, top: int) -> str:
    name = html.escape(Path(answer.image).name)
    if answer.error is not None:
        message = html.escape(f"{answer.error['message']} {answer.error['remedy']}")
        return f'<article class="failed"><h2>Cannot be read</h2><p>{message}</p><footer>{name}</footer></article>'
    code = answer.diagnosis_code or ""
    diagnosis = DIAGNOSES.get(code)
    kind = diagnosis.malignancy if diagnosis else "unknown"
    told = f'<p class="kind">{kind}</p>' if diagnosis else ""
    plain = f"<p>{html.escape(diagnosis.plain)}</p>" if diagnosis else ""
    codes = f"ICD-10 {diagnosis.icd10} · ICD-11 {diagnosis.icd11}" if diagnosis else ""
    if answer.status == "rejected":
        return (
            f'<article class="rejected">{_picture(answer, bundle)}<div><p class="kind">Rejected</p>'
            f"<h2>I can&rsquo;t tell</h2>{_reasons(answer)}{_neighbours(answer)}</div><footer>{name}</footer></article>"
        )
    bars = "".join(_bar(c, p, c == code) for c, p in shown(answer, top))
    return (
        f'<article class="{kind}">{_picture(answer, bundle)}<div>{told}'
        f"<h2>{html.escape(answer.diagnosis_name or code)}</h2>{_reasons(answer)}{plain}"
        f'<table aria-label="Probabilities">{bars}</table>{_possible(answer)}{_neighbours(answer)}</div>'
        f"<footer>{name}<span>{codes}</span></footer></article>"
    )


def _reasons(answer: Prediction) -> str:
    if not answer.reasons:
        return ""
    words = " ".join(reason.text for reason in answer.reasons)
    return f'<p class="why"><b>{html.escape(answer.status.capitalize())}</b> {html.escape(words)}</p>'


def _possible(answer: Prediction) -> str:
    """The prediction set and the advice, where the bundle has facts for them."""
    lines = []
    if answer.prediction_set is not None:
        names = ", ".join(display_name(code) for code in answer.prediction_set)
        lines.append(f"Compatible with: {html.escape(names)}.")
    if answer.malignant_probability is not None:
        lines.append(f"Malignant or premalignant: {html.escape(percent(answer.malignant_probability))}.")
    if answer.referral is not None and answer.referral["advised"]:
        lines.append("<b>To be seen by a specialist.</b>")
    return f'<p class="possible">{" ".join(lines)}</p>' if lines else ""


def _neighbours(answer: Prediction) -> str:
    """The most similar training lesions, where they were asked for."""
    if not answer.neighbours:
        return ""
    return f'<p class="possible">Nearest in training: {html.escape(neighbours_words(answer.neighbours))}.</p>'


def _bar(code: str, probability: float, chosen: bool) -> str:
    mark = ' class="chosen"' if chosen else ""
    return (
        f"<tr{mark}><th>{html.escape(display_name(code))}</th>"
        f'<td><i style="width:{probability * 100:.1f}%"></i></td><td>{html.escape(percent(probability))}</td></tr>'
    )


def _picture(answer: Prediction, bundle: Bundle) -> str:
    try:
        spec = replace(bundle.input_spec, size_px=THUMBNAIL_PX)
        pixels = load_image(
            answer.image, spec, frame_aspect=answer.frame_aspect, max_bytes=ANY_SIZE, max_pixels=ANY_SIZE
        )
    except ImageError:
        return ""
    _, code = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    data = base64.b64encode(code.tobytes()).decode("ascii")
    alt = html.escape(f"{Path(answer.image).name}, framed as the model sees it")
    picture = f'<img src="data:image/jpeg;base64,{data}" alt="{alt}" width="{THUMBNAIL_PX}" height="{THUMBNAIL_PX}">'
    return f'<div class="pictures">{picture}{_heatmap(answer)}</div>' if answer.heatmap else picture


def _heatmap(answer: Prediction) -> str:
    """The heat map that `predict --heatmap` wrote for this answer."""
    try:
        data = base64.b64encode(Path(answer.heatmap or "").read_bytes()).decode("ascii")
    except OSError:
        return ""
    alt = html.escape(f"what spoke for {answer.diagnosis_name}, the brighter the more")
    return f'<img src="data:image/png;base64,{data}" alt="{alt}" width="{THUMBNAIL_PX}" height="{THUMBNAIL_PX}">'
