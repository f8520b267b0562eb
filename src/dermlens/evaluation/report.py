"""The figures of an evaluation -> its HTML report: a verdict in plain words, then one section per question.

`templates/evaluation.html` shows metrics.json; this module adds the verdict, the plots and the images of errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dermlens.bundle.card_text import bias_words
from dermlens.bundle.case_mix import mix_words
from dermlens.bundle.limits import aims, grave_codes
from dermlens.data.images import Pixels
from dermlens.diagnoses import DISCLAIMER, display_name
from dermlens.evaluation import metrics
from dermlens.evaluation.baselines import describe_images, method_name
from dermlens.evaluation.checklist import checklist
from dermlens.evaluation.subgroups import MIN_LESIONS
from dermlens.evaluation.trust_sections import Answers
from dermlens.html import data_uri, write_page
from dermlens.inference.explain import Explanation
from dermlens.inference.judge import ADVICE
from dermlens.reporting.answers import neighbours_words
from dermlens.reporting.plots import benefit_png, confusion_png, curves_png, reliability_by_class_png, reliability_png
from dermlens.text import figure

GALLERY = 12
NEIGHBOURS = 3
FEW_NAMELESS = 0.1  # the share of images without lesion or ISIC id up to which copies count as recognised
PEOPLE = ("age", "sex", "site", "skin type (Fitzpatrick)")  # recorded, and known when the image is taken
GOOD_ECE = 0.05
CHANCE_SLACK = 1e-6  # a network that always gives one answer is at chance, to rounding
_ROLES = ("train", "select", "calibrate", "test")
_JPEG_QUALITY = 85
_FIGURE = re.compile(r"-?\d[\d.]*( \[[-\d., ]+\])?$")  # 0.712 [0.650, 0.771], not to be broken over lines

Explain = Callable[[int], Explanation]


def write_report(
    path: Path, report: Mapping[str, Any], answers: Answers, names: Sequence[str], explain: Explain
) -> None:
    """Write the page.

    Args:
        report: the content of metrics.json.
        names: (n,) of the scored images.
        explain: gives the explanation of the answer to image i.

    Raises:
        StorageError: the file cannot be written.
    """
    bundle, found = answers.bundle, report["baselines"]
    bias_test = report["calibration"]["bias_test"]
    groups = [(axis, *item) for axis, rows in report["subgroups"].items() for item in rows.items()]
    write_page(
        path,
        "evaluation.html",
        report=report,
        bundle=bundle,
        card=bundle.card,
        role_names=_ROLES,
        mix_words=mix_words(answers.mix),
        advice_words=ADVICE,
        title=f"{bundle.name} {bundle.version}",
        lesions=describe_lesions(report["counts"]),
        source=Path(report["data"]).name or report["data"],
        verdict=verdict(report),
        tiles=_tiles(report),
        plots=_plots(report, answers),
        shots=_gallery(answers, names, explain),
        checklist=checklist(bundle.card, report),
        method_names={name: method_name(name, found) for name in found.get("methods", ())},
        compared_images=describe_images(found) if found["available"] else "",
        bias_test="" if bias_test is None else bias_words(bias_test),
        watched=" + ".join(map(display_name, (report["controls"] or {}).get("watched", ()))),
        groups=[group for group in groups if group[2]["n_lesions"] >= MIN_LESIONS],
        small_groups=_small_groups(report["subgroups"]),
        min_lesions=MIN_LESIONS,
        disclaimer=DISCLAIMER,
        is_figure=_FIGURE.match,
        figure=figure,
        display_name=display_name,
        data_uri=data_uri,
    )


def _tiles(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the tiles: number by name, with its interval."""
    rows = {
        "balanced accuracy": report["balanced_accuracy"],
        "accuracy": report["accuracy"],
        "AUC, mean of the classes": report["macro_auc"],
        "melanoma AUC": report["per_class"].get("MEL", {}).get("auc"),
        "calibration error": report["ece"],
        "accuracy where status is ok": report["status"]["ok"]["accuracy"],
    }
    tiles = {}
    for name, row in rows.items():
        if row and row["value"] is not None:
            digits = 3 if name == "calibration error" else 2
            limits = "" if row["low"] is None else f" ({row['low']:.{digits}f} to {row['high']:.{digits}f})"
            tiles[name + limits] = f"{row['value']:.{digits}f}"
    return tiles


def _small_groups(table: Mapping[str, Any]) -> list[str]:
    """Name the groups that are too small to be scored, with their lesions, by axis."""
    small = {
        axis: [f"{name} ({row['n_lesions']})" for name, row in rows.items() if row["n_lesions"] < MIN_LESIONS]
        for axis, rows in table.items()
    }
    return [f"{axis}: {', '.join(names)}" for axis, names in small.items() if names]


def _plots(report: Mapping[str, Any], answers: Answers) -> dict[str, bytes]:
    """Return the plots as PNG by name; empty where there is nothing to plot."""
    found = report["calibration"]["at"][report["calibration"]["case_mix"]]
    matrix, calibration = report["confusion_matrix"], [found[when] for when in ("before", "after")]
    curves = report["decision_curves"]
    return {
        "confusion": confusion_png(matrix["value"], matrix["classes"]),
        "reliability": reliability_png(*(each["reliability"] for each in calibration)),
        "reliability_by_class": reliability_by_class_png(*(each["classwise_reliability"] for each in calibration)),
        "benefit": benefit_png(curves) if curves else b"",
        **_curves(answers),
    }


def _curves(answers: Answers) -> dict[str, bytes]:
    """Return the ROC and the precision-recall curves of each class and aim against all others."""
    codes = answers.bundle.codes
    roc: dict[str, list[list[float]]] = {}
    precision: dict[str, list[list[float]]] = {}
    for name, members in {**aims(codes), **{code: (code,) for code in codes if code != "MEL"}}.items():
        columns = answers.places(members)
        positive = np.isin(answers.y_true, columns)
        if not positive.any() or positive.all():
            continue
        curve = metrics.roc(positive, answers.probability[:, columns].sum(axis=1), np.ones((1, len(positive))))
        hits, alarms = curve.true_positive[0], curve.false_positive[0]
        roc[name] = [(alarms / alarms[-1]).tolist(), (hits / hits[-1]).tolist()]
        precision[name] = [(hits[1:] / hits[-1]).tolist(), (hits[1:] / (hits[1:] + alarms[1:])).tolist()]
    if not roc:
        return {"roc": b"", "precision": b""}
    return {
        "roc": curves_png(roc, ("1 - specificity", "sensitivity"), diagonal=True),
        "precision": curves_png(precision, ("sensitivity (recall)", "precision"), diagonal=False),
    }


def _gallery(answers: Answers, names: Sequence[str], explain: Explain) -> list[dict[str, Any]]:
    """Return the worst errors with their heat maps and the training lesions nearest to them."""
    shots = []
    bundle = answers.bundle
    examples = bundle.examples() if bundle.has_examples else None
    for row in worst_errors(answers):
        explanation, prediction = explain(row), answers.predictions[row]
        truth, given = (display_name(bundle.codes[int(c)]) for c in (answers.y_true[row], answers.decision[row]))
        share, advice = answers.probability[row, answers.decision[row]] * 100, prediction.advice
        embedding = prediction.embedding
        near = () if examples is None or embedding is None else examples.nearest(embedding, NEIGHBOURS)
        shots.append(
            {
                "pictures": [_jpeg(explanation.image), _jpeg(explanation.overlay())],
                "label": f"{truth}, called {given} ({share:.0f} %), {prediction.status}"
                + (f": {ADVICE[advice.code].lower()}" if advice else ""),
                "name": names[row],
                "nearest": neighbours_words(near) if near else "",
            }
        )
    return shots


def _jpeg(pixels: Pixels) -> str:
    _, code = cv2.imencode(".jpg", np.ascontiguousarray(pixels[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return data_uri(code.tobytes(), "image/jpeg")


def worst_errors(answers: Answers, most: int = GALLERY) -> list[int]:
    """Return the rows of the worst errors: malignant lesions called benign first, then the most confident ones."""
    wrong = np.flatnonzero(~answers.right)
    grave = answers.places(grave_codes(answers.bundle.codes))
    missed = np.isin(answers.y_true[wrong], grave) & ~np.isin(answers.decision[wrong], grave)
    confidence = answers.probability[wrong, answers.decision[wrong]]
    order = np.lexsort((-confidence, ~missed))
    return [int(row) for row in wrong[order][:most]]


def verdict(report: Mapping[str, Any]) -> list[str]:
    """Return plain sentences: what the model is good for, what it is not good for, and what is not known."""
    lines = []
    if report["leaky"]:
        lines.append("LEAKY: the model's training and test share images or lesions. Its figures are too good.")
    lines.append(
        f"On {describe_lesions(report['counts'])} the model names the correct diagnosis for "
        f"{_percent(report['accuracy'])} of the images; as the mean over the diagnoses, for "
        f"{_percent(report['balanced_accuracy'])}."
    )
    lines += report["baselines"].get("words", ())
    points = {point["name"]: point for point in report["operating_points"]}
    point = points.get(report.get("referral") or "")
    if point and point["sensitivity"]["value"] is not None:
        names = ", ".join(display_name(code) for code in point["codes"])
        lines.append(
            f"Its advice to refer to a specialist: sensitivity {_percent(point['sensitivity'])}, specificity "
            f"{_percent(point['specificity'])} on unseen lesions, for {names}."
        )
        lines += _lowest_sensitivity(report["subgroups"])
    ok, everyone = report["status"]["ok"], report["status"]["all"]
    lines.append(
        f"It gives an answer with status ok for {ok['share']['value'] * 100:.0f} % of these images. Of these answers, "
        f"{_percent(ok['accuracy'])} are correct; of all answers, {_percent(everyone['accuracy'])}."
    )
    lines.append(_calibration_words(report["calibration"], report["n"]))
    weak = [display_name(code) for code, row in report["per_class"].items() if row["n_lesions"] < 30]
    if weak:
        lines.append(f"Too few lesions for a reliable figure: {', '.join(weak)}.")
    lines.append(report["skin_tone"])
    if report["controls"] is None:
        lines.append("The effect of ink, rulers, hair and light was not tested here; run evaluate with --controls.")
    else:
        lines.append(_artefact_words(report["controls"]))
    return lines


def _lowest_sensitivity(table: Mapping[str, Any]) -> list[str]:
    """Name the group of people in which the sensitivity of referral is lowest."""
    rates = [
        (row["referral_sensitivity"], f"{name} ({axis})")
        for axis, groups in table.items()
        if axis in PEOPLE
        for name, row in groups.items()
        if row["referral_sensitivity"]["value"] is not None
    ]
    rate, name = min(rates, key=lambda pair: pair[0]["value"], default=({"value": 1}, ""))
    if len(rates) < 2 or rate["value"] == 1:
        return []
    return [
        f"Of the groups with enough lesions its sensitivity is lowest for {name}: {_percent(rate)}. The lowest of many "
        "is partly chance."
    ]


def describe_lesions(counts: Mapping[str, Any]) -> str:
    """Say which lesions were scored, and how certain it is that the model has not seen them."""
    nameless, scored = counts["scored_without_lesion_id"], counts["scored"]
    if nameless <= FEW_NAMELESS * scored:
        return "unseen lesions"
    return (
        f"lesions that are unseen as far as file bytes tell ({nameless} of {scored} images have no lesion or ISIC id, "
        "so other views or re-saved copies cannot be recognised)"
    )


def _artefact_words(controls: Mapping[str, Any]) -> str:
    name, row = max(controls["artefacts"].items(), key=lambda item: item[1]["flip_rate"]["value"])
    words = (
        f"The artefact with the largest effect is {name}: {row['flip_rate']['value'] * 100:.0f} % of diagnoses change."
    )
    erased = controls["without_lesion"]["lesion erased"]
    reached = erased["balanced_accuracy"]
    if reached["low"] is None or reached["low"] <= erased["chance"] + CHANCE_SLACK:
        return words
    return (
        f"{words} With the lesion hidden its balanced accuracy is still {reached['value']:.2f}, where chance is "
        f"{erased['chance']:.2f}: the difference comes from the surroundings of the lesion."
    )


def _calibration_words(found: Mapping[str, Any], n: int) -> str:
    if n < metrics.MIN_ECE_IMAGES:
        return "There are too few images to say whether its probabilities mean what they say."
    at_mix = found["at"][found["case_mix"]]
    ece, error, chance = at_mix["after"]["ece"]["value"], at_mix["after"]["ece_debiased"], at_mix["chance"]["high"]
    words, limit = "Its probabilities are not well calibrated", ""
    if error["high"] <= GOOD_ECE:
        words = "Its probabilities mean roughly what they say"
    elif error["value"] <= GOOD_ECE or ece <= chance:
        words = "Its probabilities may or may not be well calibrated: there are too few images to say"
        limit = f"; with exact probabilities, chance alone shows up to {chance * 100:.1f} before that"
    low, high = (f"{error[side] * 100:.1f}" for side in ("low", "high"))
    return (
        f"{words}. On average, the probability of the most probable class differs by {error['value'] * 100:.1f} points "
        f"({low} to {high}) from how often that class is correct, with less of what chance adds{limit}. "
        f"Each diagnosis counts by its share in the case mix ({found['case_mix']})."
    )


def _percent(value: Mapping[str, Any]) -> str:
    if value["value"] is None:
        return "an unknown share"
    if value["low"] is None:
        return f"{value['value'] * 100:.0f} %"
    return f"{value['value'] * 100:.0f} % ({value['low'] * 100:.0f} to {value['high'] * 100:.0f} %)"
