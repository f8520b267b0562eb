"""The evaluation's figures -> its HTML report: a verdict in plain words, then each question with its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.diagnoses import display_name
from dermlens.evaluation import weighted
from dermlens.evaluation.baselines import MEASURES, MODEL, method_name, where
from dermlens.evaluation.calibration import bias_words
from dermlens.evaluation.checklist import MISSING, checklist
from dermlens.evaluation.gallery import Explain, gallery
from dermlens.evaluation.operating_points import aims
from dermlens.evaluation.trust_report import STATUSES, Answers
from dermlens.evaluation.verdict import unmet, verdict
from dermlens.reporting.evaluation_page import Part, Table, write_evaluation_page
from dermlens.reporting.figures import figure
from dermlens.reporting.plots import benefit_png, confusion_png, curves_png, reliability_png


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
            _calibration(report),
            _status(report),
            _sets(report),
            _referral(report),
            _novelty(report, answers),
            _controls(report),
            _subgroups(report),
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
        "accuracy where it is sure": report["status"] and report["status"]["ok"]["accuracy"],
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
    limits = card["data"].get("not_tested_on", [])
    lines = [answers.bundle.scope, f"SHA-256 of its bundle.json: {answers.bundle.sha256}."]
    if limits:
        lines.append(f"Not tested on: {'; '.join(limits)}.")
    lines.append(f"Weights: {card['licence']['weights']}. Code: {card['licence']['code']}.")
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
    codes = list(found["methods"][MODEL]["sensitivity"])
    rows = [
        [
            method_name(name, found),
            *(figure(row[measure]) for measure in MEASURES),
            *(figure(row["sensitivity"][code], 2) for code in codes),
        ]
        for name, row in found["methods"].items()
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
            Table(("", "balanced accuracy", "accuracy", *(f"sensitivity {code}" for code in codes)), rows),
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
        curve = weighted.roc(positive, answers.probability[:, columns].sum(axis=1), np.ones((1, len(positive))))
        hits, alarms = curve.true_positive[0], curve.false_positive[0]
        roc[name] = [(alarms / alarms[-1]).tolist(), (hits / hits[-1]).tolist()]
        precision[name] = [(hits[1:] / hits[-1]).tolist(), (hits[1:] / (hits[1:] + alarms[1:])).tolist()]
    plots = [
        (curves_png(roc, ("1 - specificity", "sensitivity"), diagonal=True), "ROC, each class against all others."),
        (
            curves_png(precision, ("sensitivity (recall)", "precision"), diagonal=False),
            "Precision and recall; precision depends on how common a class is in this data.",
        ),
    ]
    return Part("curves", "Can it tell them apart?", plots=plots)


def _calibration(report: Mapping[str, Any]) -> Part:
    found = report["calibration"]
    rows = [
        [name, *(f"{found[when][key]:.4f}" for when in ("before", "after"))]
        for name, key in (("expected calibration error", "ece"), ("Brier score", "brier"), ("log loss", "log_loss"))
    ]
    classes = [[display_name(code), f"{value:.4f}"] for code, value in found["classwise_ece"].items()]
    plot = reliability_png(found["before"]["reliability"], found["after"]["reliability"])
    return Part(
        "calibration",
        "Do its probabilities mean what they say?",
        [f"Temperature {found['temperature']:.3f}, fitted on other lesions. Bins of equal mass.", *_biases(found)],
        [Table(("", "before", "after"), rows), Table(("class", "calibration error of its probability"), classes)],
        [(plot, "How often the most probable class is right, by how probable it is.")],
    )


def _biases(found: Mapping[str, Any]) -> list[str]:
    test = found["bias_test"]
    words = [] if test is None else [bias_words(test)]
    if any(found["bias"].values()):
        words.append("Biases: " + ", ".join(f"{code} {value:+.2f}" for code, value in found["bias"].items()) + ".")
    return words


def _status(report: Mapping[str, Any]) -> Part:
    status = report["status"]
    if not status:
        return Part("status", "Does it know when it cannot tell?", ["This bundle has no facts for it."])
    rows = [
        [name, str(status[name]["n"]), figure(status[name]["share"], 2), figure(status[name]["accuracy"], 2)]
        for name in ("all", *STATUSES)
    ]
    reasons = [[code, str(n)] for code, n in sorted(status["reasons"].items(), key=lambda item: -item[1])]
    return Part(
        "status",
        "Does it know when it cannot tell?",
        ["Each answer is ok, uncertain or rejected; these images all show lesions, so a rejection here is a loss."],
        [Table(("status", "images", "share", "accuracy"), rows), Table(("reason", "images"), reasons)],
    )


def _sets(report: Mapping[str, Any]) -> Part:
    sets = report["prediction_sets"]
    if sets is None:
        return Part("sets", "Prediction sets", ["This bundle has none: too few calibration lesions."])
    rows = [["all", str(sets["n_lesions"]), figure(sets["coverage"]), f"{sets['mean_size']:.2f}"]]
    rows += [
        [display_name(code), str(row["n_lesions"]), figure(row["coverage"]), f"{row['mean_size']:.2f}"]
        for code, row in sets["per_class"].items()
        if row["n"]
    ]
    sizes = ", ".join(f"{n} of size {size}" for size, n in sets["by_size"].items())
    return Part(
        "sets",
        "Which diagnoses remain possible?",
        [
            f"Each answer comes with a set that should hold the truth for {sets['level']:.0%} of the lesions of every "
            f"class, rare ones too (class-conditional split conformal prediction). Images: {sizes}."
        ],
        [Table(("class", "lesions", "coverage", "mean size"), rows)],
        note="Each lesion counts once; Wilson intervals.",
    )


def _referral(report: Mapping[str, Any]) -> Part:
    rows = [
        [
            point["name"] + (" (in use)" if point["name"] == report["referral"] else ""),
            " ".join(point["codes"]),
            f"{point['threshold']:.3f}",
            *(figure(point[name], 3) for name in ("sensitivity", "specificity", "referred", "net_benefit")),
        ]
        for point in report["operating_points"]
    ]
    curves = report["decision_curves"]
    header = ("operating point", "classes", "threshold", "sensitivity", "specificity", "referred", "net benefit")
    return Part(
        "referral",
        "Whom would it send to a specialist?",
        [
            "The thresholds were chosen on calibration lesions at 90 and 95 % sensitivity; "
            "here is what they reach on these."
        ],
        [Table(header, rows)] if rows else (),
        [(benefit_png(curves), "Decision curves (Vickers and Elkin 2006): higher is better.")] if curves else (),
        note="" if rows else "No operating points: too few lesions, or nothing malignant among the classes.",
    )


def _novelty(report: Mapping[str, Any], answers: Answers) -> Part:
    found = report.get("novelty")
    if not found:
        return Part("novelty", "Does it notice what it does not know?", ["This bundle has no novelty score."])
    rows = [[f"{float(q):.0%}", f"{value:.3f}"] for q, value in found["quantiles"].items()]
    return Part(
        "novelty",
        "Does it notice what it does not know?",
        [
            f"An image with a novelty score above {found['threshold']:.3f} is rejected; {found['kept']:.1%} of these "
            "lesions lie below. What is no such lesion is tested in benchmarks/novelty.py, for the embedded model."
        ],
        [Table(("share of these images", "score at or below"), rows)],
    )


def _controls(report: Mapping[str, Any]) -> Part:
    controls = report["controls"]
    title = "Does its answer hang on the lesion?"
    if controls is None:
        return Part("controls", title, ["Not tested; run evaluate with --controls."])
    watched = " + ".join(display_name(code) for code in controls["watched"])
    rows = [
        [
            name,
            *(
                figure(row[key])
                for key in ("flip_rate", "watched_change", "watched_change_absolute", "accuracy_change")
            ),
        ]
        for name, row in controls["artefacts"].items()
    ]
    without = [
        [name, figure(row["balanced_accuracy"]), f"{row['chance']:.3f}"]
        for name, row in controls["without_lesion"].items()
    ]
    header = ("artefact", "diagnoses that change", f"change of P({watched})", "the same, in size", "change of accuracy")
    return Part(
        "controls",
        title,
        [
            f"{controls['images']} images of {controls['lesions']} lesions, each against itself with a synthetic "
            "artefact. The second table hides the lesion: what is left above chance was learned from around it."
        ],
        [Table(header, rows), Table(("picture", "balanced accuracy", "chance"), without)],
    )


def _subgroups(report: Mapping[str, Any]) -> Part:
    rows = [
        [axis, name, f"{row['n']} ({row['n_lesions']})"]
        + [figure(row[key]) if row[key]["value"] is not None else row[key]["reason"] for key in _MEASURES]
        for axis, groups in report["subgroups"].items()
        for name, row in groups.items()
    ]
    header = ("by", "group", "images (lesions)", "accuracy", "balanced accuracy", "AUC, malignant or premalignant")
    return Part(
        "subgroups",
        "Does it serve everyone alike?",
        [report["skin_tone"]],
        [Table(header, rows)] if rows else (),
        note="Groups differ in which diagnoses they hold, so differences need care. Groups below 20 lesions are "
        "not scored.",
    )


_MEASURES = ("accuracy", "balanced_accuracy", "auc")


def _data(report: Mapping[str, Any], answers: Answers) -> Part:
    counts, data = report["counts"], answers.bundle.card["data"]
    lines = [
        f"{counts['images']} images: {counts['scored']} scored, {counts['set_aside_as_seen']} set aside because the "
        f"model knows them or their lesion, {sum(counts['class_not_in_model'].values())} of classes that it does not "
        f"have, {counts['unreadable']} unreadable. {counts['of_the_models_own_test']} of them are of the test role "
        "that the model's own data set was split into.",
        *report["notes"],
        *(f"Audit: {line}" for line in report["audit"]),
        f"Fingerprint of this data: {report['fingerprint']}; of the training data: {data.get('fingerprint', MISSING)}.",
    ]
    roles = data.get("roles", {})
    rows = [
        [code, *(f"{cells[r][0]} ({cells[r][1]})" if r in cells else "0" for r in _ROLES)]
        for code, cells in roles.items()
    ]
    table = [Table(("trained from, images (lesions)", *_ROLES), rows)] if rows else ()
    sources = data.get("sources", [])
    return Part("data", "The data", [*lines, *(f"Trained from: {s}" for s in sources)], table)


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
