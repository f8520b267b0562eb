"""The evaluation's figures -> its HTML report: a verdict in plain words, then each question with its answer.

The verdict of an evaluation in plain words: what the model is good for, what not, and what nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.diagnoses import display_name
from dermlens.evaluation import metrics
from dermlens.evaluation.baselines import MEASURES, MODEL, method_name, where
from dermlens.evaluation.checklist import MISSING, checklist
from dermlens.evaluation.page import Part, Table, write_evaluation_page
from dermlens.evaluation.thresholds import aims
from dermlens.evaluation.trust_figures import Answers
from dermlens.evaluation.trust_sections import (
    Explain,
    calibration,
    controls,
    gallery,
    novelty,
    referral,
    sets,
    status,
    subgroups,
)
from dermlens.reporting.plots import confusion_png, curves_png
from dermlens.text import figure


def write_report(
    path: Path, report: Mapping[str, Any], answers: Answers, names: Sequence[str], explain: Explain
) -> None:
    """Write the page.

    Args:
        report: what stands in metrics.json.
        names: (n,) of the scored images.
        explain: gives the explanation of the answer to image i.

    Raises:
        StorageError: the file cannot be written.
    """
    bundle = answers.bundle
    write_evaluation_page(
        path,
        title=f"{bundle.name} {bundle.version}",
        about=f"{bundle.name} {bundle.version} on {report['n']} images, {report['n_lesions']} "
        f"{unmet(report['counts'])}, from {Path(report['data']).name or report['data']}; 95 % intervals from a "
        "bootstrap over lesions.",
        verdict=verdict(report),
        figures=_figures(report),
        parts=[
            _model(report, answers),
            _results(report, answers),
            _baselines(report),
            _curves(answers),
            calibration(report),
            status(report),
            sets(report),
            referral(report),
            novelty(report),
            controls(report),
            subgroups(report),
            gallery(answers, names, explain),
            _data(report, answers),
            _checklist(report, answers),
        ],
    )


def _figures(report: Mapping[str, Any]) -> dict[str, str]:
    rows = {
        "balanced accuracy": report["balanced_accuracy"],
        "accuracy": report["accuracy"],
        "AUC, mean of the classes": report["macro_auc"],
        "melanoma AUC": report["per_class"].get("MEL", {}).get("auc"),
        "calibration error": report["ece"],
        "accuracy where it is sure": report["status"]["ok"]["accuracy"],
    }
    tiles = {}
    for name, row in rows.items():
        if row and row["value"] is not None:
            digits = 3 if name == "calibration error" else 2
            limits = "" if row["low"] is None else f" ({row['low']:.{digits}f} to {row['high']:.{digits}f})"
            tiles[name + limits] = f"{row['value']:.{digits}f}"
    return tiles


def _model(report: Mapping[str, Any], answers: Answers) -> Part:
    card = answers.bundle.card
    limits = card.data.not_tested_on
    lines = [answers.bundle.scope, f"SHA-256 of its bundle.json: {answers.bundle.sha256}."]
    if limits:
        lines.append(f"Not tested on: {'; '.join(limits)}.")
    lines.append(f"Weights: {card.licence.weights}. Code: {card.licence.code}.")
    return Part("model", "The model", lines)


def _results(report: Mapping[str, Any], answers: Answers) -> Part:
    rows = [
        [
            f"{display_name(code)} ({code})",
            f"{row['n']} ({row['n_lesions']})",
            *(figure(row[name]) for name in ("sensitivity", "specificity", "auc", "sensitivity_at_90_specificity")),
        ]
        for code, row in report["per_class"].items()
    ]
    header = ("diagnosis", "images (lesions)", "sensitivity", "specificity", "AUC", "sensitivity at 90 % specificity")
    rules = [
        [
            name + (" (in use)" if row["in_use"] else ""),
            f"{row['accuracy']:.3f}",
            f"{row['balanced_accuracy']:.3f}",
            *("n/a" if share is None else f"{share:.2f}" for share in row["sensitivity"].values()),
        ]
        for name, row in report["decision_rules"].items()
    ]
    rule_header = ("decision rule", "accuracy", "balanced accuracy", *report["per_class"])
    matrix = confusion_png(report["confusion_matrix"]["value"], answers.bundle.codes)
    return Part(
        "results",
        "Results by diagnosis",
        tables=[Table(header, rows), Table(rule_header, rules)],
        plots=[(matrix, "Confusion matrix: rows are true, columns are given; darker is a larger share of the row.")],
        note="Below some 20 lesions an interval is too narrow. The second table shows what each decision rule costs, "
        "with the sensitivity of each class.",
    )


def _baselines(report: Mapping[str, Any]) -> Part:
    found, title = report["baselines"], "Is it better than the simplest answers?"
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
            Table(("in pairs", "balanced accuracy", "accuracy"), gaps),
        ],
        note=f"{where(found)}. The probe is a logistic regression on features of the network as it was before "
        "training; differences are taken on the same resampled lesions.",
    )


def _curves(answers: Answers) -> Part:
    codes = answers.bundle.codes
    roc: dict[str, list[list[float]]] = {}
    precision: dict[str, list[list[float]]] = {}
    lines = {**aims(codes), **{code: (code,) for code in codes if code != "MEL"}}
    for name, members in lines.items():
        columns = [codes.index(code) for code in members]
        positive = np.isin(answers.y_true, columns)
        if not positive.any() or positive.all():
            continue
        curve = metrics.roc(positive, answers.probability[:, columns].sum(axis=1), np.ones((1, len(positive))))
        hits, alarms = curve.true_positive[0], curve.false_positive[0]
        roc[name] = [(alarms / alarms[-1]).tolist(), (hits / hits[-1]).tolist()]
        precision[name] = [(hits[1:] / hits[-1]).tolist(), (hits[1:] / (hits[1:] + alarms[1:])).tolist()]
    if not roc:
        return Part("curves", "Can it tell them apart?", ["All of these images are of one class, so nobody can say."])
    plots = [
        (curves_png(roc, ("1 - specificity", "sensitivity"), diagonal=True), "ROC, each class against all others."),
        (
            curves_png(precision, ("sensitivity (recall)", "precision"), diagonal=False),
            "Precision and recall; precision depends on how common a class is in this data.",
        ),
    ]
    return Part("curves", "Can it tell them apart?", plots=plots)


def _data(report: Mapping[str, Any], answers: Answers) -> Part:
    counts, data = report["counts"], answers.bundle.card.data
    lines = [
        f"{counts['images']} images: {counts['scored']} scored, {counts['set_aside_as_seen']} set aside because the "
        f"model knows them or their lesion, {sum(counts['class_not_in_model'].values())} of classes that it does not "
        f"have, {counts['unreadable']} unreadable. {counts['of_the_models_own_test']} of them are of the test role "
        "that the model's own data set was split into.",
        *report["notes"],
        *(f"Audit: {line}" for line in report["audit"]),
        f"Fingerprint of this data: {report['fingerprint']}; of the training data: {data.fingerprint}.",
    ]
    rows = [
        [code, *(f"{cells[r][0]} ({cells[r][1]})" if r in cells else "0" for r in _ROLES)]
        for code, cells in data.roles.items()
    ]
    table = [Table(("trained from, images (lesions)", *_ROLES), rows)] if rows else ()
    return Part("data", "The data", [*lines, *(f"Trained from: {s}" for s in data.sources)], table)


_ROLES = ("train", "select", "calibrate", "test")


def _checklist(report: Mapping[str, Any], answers: Answers) -> Part:
    rows = [
        [item, f"missing: {text}" if where == MISSING else f"#{where} {text}"]
        for item, where, text in checklist(answers.bundle.card, report)
    ]
    return Part(
        "checklist",
        "Checklist",
        ["After CLEAR Derm (Daneshjou et al. 2022) and the fields of a model card (Mitchell et al. 2019)."],
        [Table(("item", "where this report tells it"), rows)],
    )


NAMELESS = 0.1  # the share of images without lesion or ISIC id up to which copies count as recognised
PEOPLE = ("age", "sex", "site", "skin type (Fitzpatrick)")  # recorded, and known when the picture is taken
GOOD_ECE = 0.05
CHANCE_SLACK = 1e-6  # a network that always gives one answer is at chance, to rounding


def verdict(report: Mapping[str, Any]) -> list[str]:
    """Return plain sentences: what it is good for, what not, and what nobody knows."""
    lines = []
    if report["leaky"]:
        lines.append("LEAKY: the model's training and test share images or lesions. Its figures are too good.")
    lines.append(
        f"On {unmet(report['counts'])} the model names the right diagnosis in {_percent(report['accuracy'])}; giving "
        f"every diagnosis the same weight, in {_percent(report['balanced_accuracy'])}."
    )
    lines += report["baselines"].get("words", ())
    points = {point["name"]: point for point in report["operating_points"]}
    point = points.get(report.get("referral") or "")
    if point and point["sensitivity"]["value"] is not None:
        names = ", ".join(display_name(code) for code in point["codes"])
        lines.append(
            f"Where it advises a specialist it catches {_percent(point['sensitivity'])} of {names}, and leaves "
            f"{_percent(point['specificity'])} of the other lesions alone."
        )
        lines += _least_caught(report["subgroups"])
    status = report["status"]
    lines.append(
        f"It answers without reserve in {status['ok']['share']['value']:.0%} of these images, and is right in "
        f"{_percent(status['ok']['accuracy'])} of them, against {_percent(status['all']['accuracy'])} of all."
    )
    lines.append(_calibration_words(report["calibration"], report["n"]))
    weak = [code for code, row in report["per_class"].items() if row["n_lesions"] < 30]
    if weak:
        lines.append(f"Too few lesions to judge it well on: {', '.join(display_name(code) for code in weak)}.")
    lines.append(report["skin_tone"])
    if report["controls"] is None:
        lines.append("Whether ink, rulers, hair or light sway it was not tested here; run evaluate with --controls.")
    else:
        lines.append(_sway(report["controls"]))
    return lines


def _least_caught(table: Mapping[str, Any]) -> list[str]:
    """Name the group of people in which it catches the smallest share of what a specialist should see."""
    rates = [
        (row["referral_sensitivity"], f"{name} ({axis})")
        for axis, groups in table.items()
        if axis in PEOPLE
        for name, row in groups.items()
        if row["referral_sensitivity"]["value"] is not None
    ]
    if len(rates) < 2:
        return []
    rate, name = min(rates, key=lambda pair: pair[0]["value"])
    if rate["value"] == 1:
        return []
    return [
        f"Of the groups with enough lesions it catches fewest in {name}: {_percent(rate)}. The lowest "
        "of many is partly chance."
    ]


def unmet(counts: Mapping[str, Any]) -> str:
    """Say which lesions were scored, and on what it rests that the model has not met them."""
    nameless, scored = counts["scored_without_lesion_id"], counts["scored"]
    if nameless <= NAMELESS * scored:
        return "lesions it has not met"
    return (
        f"lesions it has not met as far as file bytes tell ({nameless} of {scored} images carry no lesion or ISIC id, "
        "so other views or re-saved copies cannot be recognised)"
    )


def _sway(controls: Mapping[str, Any]) -> str:
    name, row = max(controls["artefacts"].items(), key=lambda item: item[1]["flip_rate"]["value"])
    erased = controls["without_lesion"]["lesion erased"]
    words = f"The artefact that sways it most is {name}: {row['flip_rate']['value']:.0%} of its diagnoses change."
    reached = erased["balanced_accuracy"]
    if reached["low"] is None or reached["low"] <= erased["chance"] + CHANCE_SLACK:
        return words
    return (
        f"{words} With the lesion hidden it still reaches a balanced accuracy of {reached['value']:.2f}, where "
        f"chance is {erased['chance']:.2f}: that much it reads from around the lesion."
    )


def _calibration_words(found: Mapping[str, Any], n: int) -> str:
    if n < 100:
        return "There are too few images to say whether its probabilities mean what they say."
    ece, chance = found["after"]["ece"], found["chance"]["high"]
    words = "Its probabilities are off"
    if ece <= GOOD_ECE:
        words = "Its probabilities mean roughly what they say"
    elif ece <= chance:
        words = "Its probabilities are not shown to be off, nor to be right: these are too few images"
    return (
        f"{words}: the probability of the most probable class differs from how often that class is right by "
        f"{ece * 100:.1f} points on average"
        + (f", where chance alone makes up to {chance * 100:.1f}. " if GOOD_ECE < ece <= chance else ". ")
        + "(The diagnosis may be another class: it follows the decision rule.)"
    )


def _percent(value: Mapping[str, Any]) -> str:
    if value["value"] is None:
        return "an unknown share"
    if value["low"] is None:
        return f"{value['value']:.0%}"
    return f"{value['value']:.0%} ({value['low']:.0%} to {value['high']:.0%})"
