"""The figures of an evaluation -> its HTML report: a verdict in plain words, then one section per question."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dermlens.bundle.bundle import Bundle
from dermlens.data.images import Pixels
from dermlens.diagnoses import DISCLAIMER, display_name
from dermlens.evaluation import metrics, trust_sections
from dermlens.evaluation.baselines import MEASURES, MODEL, describe_images, method_name
from dermlens.evaluation.checklist import MISSING, checklist
from dermlens.evaluation.thresholds import aims
from dermlens.evaluation.trust_figures import Answers
from dermlens.evaluation.trust_sections import Explain, Part, Table
from dermlens.html import data_uri, write_page
from dermlens.reporting.plots import confusion_png, curves_png
from dermlens.text import figure

FEW_NAMELESS = 0.1  # the share of images without lesion or ISIC id up to which copies count as recognised
PEOPLE = ("age", "sex", "site", "skin type (Fitzpatrick)")  # recorded, and known when the image is taken
GOOD_ECE = 0.05
CHANCE_SLACK = 1e-6  # a network that always gives one answer is at chance, to rounding
_ROLES = ("train", "select", "calibrate", "test")
_JPEG_QUALITY = 85
_FIGURE = re.compile(r"-?\d[\d.]*( \[[-\d., ]+\])?$")  # 0.712 [0.650, 0.771], not to be broken over lines


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
    bundle = answers.bundle
    title = f"{bundle.name} {bundle.version}"
    write_page(
        path,
        "evaluation.html",
        title=title,
        about=f"{title} on {report['n']} images, {report['n_lesions']} {describe_lesions(report['counts'])}, from "
        f"{Path(report['data']).name or report['data']}; 95 % intervals from a bootstrap over lesions.",
        verdict=verdict(report),
        figures=_figures(report),
        parts=[
            _model(bundle),
            _results(report),
            _baselines(report),
            _curves(answers),
            trust_sections.calibration(report),
            trust_sections.status(report),
            trust_sections.sets(report),
            trust_sections.referral(report),
            trust_sections.novelty(report),
            trust_sections.controls(report),
            trust_sections.subgroups(report),
            trust_sections.gallery(answers, names, explain),
            _data(report, bundle),
            _checklist(report, bundle),
        ],
        disclaimer=DISCLAIMER,
        is_figure=_FIGURE.match,
        data_uri=data_uri,
        jpeg=_jpeg,
    )


def _jpeg(pixels: Pixels) -> str:
    _, code = cv2.imencode(".jpg", np.ascontiguousarray(pixels[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return data_uri(code.tobytes(), "image/jpeg")


def _figures(report: Mapping[str, Any]) -> dict[str, str]:
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


def _model(bundle: Bundle) -> Part:
    licence, limits = bundle.card["licence"], bundle.card["data"]["not_tested_on"]
    lines = [
        bundle.scope,
        f"SHA-256 of its bundle.json: {bundle.sha256}.",
        *([f"Not tested on: {'; '.join(limits)}."] if limits else []),
        f"Weights: {licence['weights']}. Code: {licence['code']}.",
    ]
    return Part("model", "The model", lines)


def _results(report: Mapping[str, Any]) -> Part:
    measures = {
        "sensitivity": "sensitivity",
        "specificity": "specificity",
        "auc": "AUC",
        "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    }
    rows = [
        [
            f"{display_name(code)} ({code})",
            f"{row['n']} ({row['n_lesions']})",
            *(figure(row[name]) for name in measures),
        ]
        for code, row in report["per_class"].items()
    ]
    rules = [
        [
            name + (" (in use)" if row["in_use"] else ""),
            f"{row['accuracy']:.3f}",
            f"{row['balanced_accuracy']:.3f}",
            *("n/a" if share is None else f"{share:.2f}" for share in row["sensitivity"].values()),
        ]
        for name, row in report["decision_rules"].items()
    ]
    matrix = confusion_png(report["confusion_matrix"]["value"], report["confusion_matrix"]["classes"])
    return Part(
        "results",
        "Results by diagnosis",
        tables=[
            Table(("diagnosis", "images (lesions)", *measures.values()), rows),
            Table(("decision rule", "accuracy", "balanced accuracy", *report["per_class"]), rules),
        ],
        plots=[(matrix, "Confusion matrix: rows are true, columns are given; darker is a larger share of the row.")],
        note="With fewer than about 20 lesions an interval is too narrow. The second table compares decision rules, "
        "with the sensitivity for each class.",
    )


def _baselines(report: Mapping[str, Any]) -> Part:
    found, title = report["baselines"], "Is it better than simple baselines?"
    if not found["available"]:
        return Part("baselines", title, [found["reason"]])
    methods = found["methods"]
    rows = [[measure.replace("_", " "), *(figure(row[measure]) for row in methods.values())] for measure in MEASURES]
    rows += [
        [f"sensitivity, {display_name(code)}", *(figure(row["sensitivity"][code], 2) for row in methods.values())]
        for code in methods[MODEL]["sensitivity"]
    ]
    gaps = [
        [f"model minus {method_name(name, found)}", *(figure(row[measure]) for measure in MEASURES)]
        for name, row in found["model_minus"].items()
    ]
    return Part(
        "baselines",
        title,
        found["words"],
        [
            Table(("", *(method_name(name, found) for name in methods)), rows),
            Table(("paired difference", "balanced accuracy", "accuracy"), gaps),
        ],
        note=f"{describe_images(found)}. The probe is a logistic regression on features of the network before "
        "training; differences use the same resampled lesions.",
    )


def _curves(answers: Answers) -> Part:
    codes, title = answers.bundle.codes, "How well does it separate the diagnoses?"
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
        return Part("curves", title, ["All of these images are of one class, so this cannot be measured."])
    plots = [
        (curves_png(roc, ("1 - specificity", "sensitivity"), diagonal=True), "ROC, each class against all others."),
        (
            curves_png(precision, ("sensitivity (recall)", "precision"), diagonal=False),
            "Precision and recall; precision depends on how common a class is in this data.",
        ),
    ]
    return Part("curves", title, plots=plots)


def _data(report: Mapping[str, Any], bundle: Bundle) -> Part:
    counts, data = report["counts"], bundle.card["data"]
    lines = [
        f"{counts['images']} images: {counts['scored']} scored, {counts['set_aside_as_seen']} left out because the "
        f"model has seen them or their lesion, {sum(counts['class_not_in_model'].values())} of classes that the model "
        f"does not have, {counts['unreadable']} unreadable. {counts['of_the_models_own_test']} of the scored images "
        "are from the test split of the model's own data set.",
        *report["notes"],
        *(f"Audit: {line}" for line in report["audit"]),
        f"Fingerprint of this data: {report['fingerprint']}; of the training data: {data['fingerprint']}.",
        *(f"Training data: {source}" for source in data["sources"]),
    ]
    rows = [
        [code, *(f"{cells[r][0]} ({cells[r][1]})" if r in cells else "0" for r in _ROLES)]
        for code, cells in data["roles"].items()
    ]
    return Part("data", "The data", lines, [Table(("training data, images (lesions)", *_ROLES), rows)] if rows else ())


def _checklist(report: Mapping[str, Any], bundle: Bundle) -> Part:
    rows = [
        [item, f"missing: {text}" if where == MISSING else f"#{where} {text}"]
        for item, where, text in checklist(bundle.card, report)
    ]
    return Part(
        "checklist",
        "Checklist",
        ["After CLEAR Derm (Daneshjou et al. 2022) and the fields of a model card (Mitchell et al. 2019)."],
        [Table(("item", "where this report answers it"), rows)],
    )


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
        f"It gives an answer with status ok for {ok['share']['value'] * 100:.0f} % of these images. "
        f"{_percent(ok['accuracy'])} of these answers are correct, and {_percent(everyone['accuracy'])} of all answers."
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
    ece, chance = found["after"]["ece"], found["chance"]["high"]
    words, limit = "Its probabilities are not well calibrated", ""
    if ece <= GOOD_ECE:
        words = "Its probabilities mean roughly what they say"
    elif ece <= chance:
        words = "Its probabilities may or may not be well calibrated: there are too few images to say"
        limit = f", where chance alone gives up to {chance * 100:.1f}"
    return (
        f"{words}. On average, the probability of the most probable class differs by {ece * 100:.1f} points from how "
        f"often that class is correct{limit}. (The diagnosis may be another class: it follows the decision rule.)"
    )


def _percent(value: Mapping[str, Any]) -> str:
    if value["value"] is None:
        return "an unknown share"
    if value["low"] is None:
        return f"{value['value'] * 100:.0f} %"
    return f"{value['value'] * 100:.0f} % ({value['low'] * 100:.0f} to {value['high'] * 100:.0f} %)"
