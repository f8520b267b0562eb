"""The report's sections on trust: calibration, statuses, sets, referral, novelty, artefacts and groups of people.

The gallery of failures: the gravest errors of an evaluation, with what spoke for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dermlens.bundle.card_text import bias_words
from dermlens.bundle.trust import grave_codes
from dermlens.diagnoses import display_name
from dermlens.evaluation.page import Part, Shot, Table
from dermlens.evaluation.subgroups import MIN_LESIONS
from dermlens.evaluation.trust_figures import STATUSES, Answers
from dermlens.inference.explain import Explanation
from dermlens.reporting.plots import benefit_png, reliability_by_class_png, reliability_png
from dermlens.reporting.terminal import neighbours_words
from dermlens.text import figure


def calibration(report: Mapping[str, Any]) -> Part:
    """Return how far the probabilities can be taken at their word."""
    found = report["calibration"]
    both = [found[when] for when in ("before", "after")]
    rows = [
        [name, *(f"{each[key]:.4f}" for each in both)]
        for name, key in (("expected calibration error", "ece"), ("Brier score", "brier"), ("log loss", "log_loss"))
    ]
    classes = [
        [display_name(code), *(f"{each['classwise_ece'][code]:.4f}" for each in both)]
        for code in found["classwise_ece"]
    ]
    plot = reliability_png(*(each["reliability"] for each in both))
    each_class = reliability_by_class_png(*(each["classwise_reliability"] for each in both))
    chance = found["chance"]
    return Part(
        "calibration",
        "Do its probabilities mean what they say?",
        [
            f"Temperature {found['temperature']:.3f}, fitted on other lesions. Bins of equal mass.",
            *_biases(found),
            f"Even perfect probabilities would show a calibration error of {chance['mean']:.3f} on so few lesions, "
            f"and in one case of twenty more than {chance['high']:.3f}.",
        ],
        [
            Table(("", "before", "after"), rows),
            Table(("calibration error of the probability of", "before", "after"), classes),
        ],
        [
            (plot, "How often the most probable class is right, by how probable it is."),
            (
                each_class,
                "How often a lesion is of the class, by the probability of that class; the axes of a rare "
                "class end earlier. Bins in which equally many lesions of the class are expected.",
            ),
        ],
    )


def _biases(found: Mapping[str, Any]) -> list[str]:
    test = found["bias_test"]
    words = [] if test is None else [bias_words(test)]
    if any(found["bias"].values()):
        words.append("Biases: " + ", ".join(f"{code} {value:+.2f}" for code, value in found["bias"].items()) + ".")
    return words


def status(report: Mapping[str, Any]) -> Part:
    """Return how often it says that it cannot tell, and whether it should."""
    status = report["status"]
    rows = [
        [name, str(status[name]["n"]), figure(status[name]["share"], 2), figure(status[name]["accuracy"], 2)]
        for name in ("all", *STATUSES)
    ]
    words = status["reason_words"]
    reasons = [[code, str(n), words[code]] for code, n in sorted(status["reasons"].items(), key=lambda item: -item[1])]
    return Part(
        "status",
        "Does it know when it cannot tell?",
        ["Each answer is ok, uncertain or rejected; these images all show lesions, so a rejection here is a loss."],
        [
            Table(("status", "images", "share", "accuracy"), rows),
            Table(("reason", "images", "in words, of one of them"), reasons),
        ],
    )


def sets(report: Mapping[str, Any]) -> Part:
    """Return what the prediction sets hold, and how large they are."""
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


def referral(report: Mapping[str, Any]) -> Part:
    """Return whom it would send to a specialist, and at what price."""
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


def novelty(report: Mapping[str, Any]) -> Part:
    """Return how strange these images are to it, and what other thresholds would do."""
    found = report.get("novelty")
    if not found:
        return Part("novelty", "Does it notice what it does not know?", ["This bundle has no novelty score."])
    rows = [
        [
            f"{row['threshold']:.3f}" + (" (in use)" if row["in_use"] else ""),
            f"{row['kept']:.1%}",
            "n/a" if row["accuracy"] is None else f"{row['accuracy']:.3f}",
        ]
        for row in found["by_threshold"]
    ]
    return Part(
        "novelty",
        "Does it notice what it does not know?",
        [
            f"An image with a novelty score above {found['threshold']:.3f} is rejected; {found['kept']:.1%} of these "
            f"images lie below, half of them at or below {found['quantiles']['0.5']:.3f}. What is no such "
            "lesion is tested in benchmarks/novelty.py, for the embedded model."
        ],
        [Table(("threshold", "of these images kept", "accuracy on those kept"), rows)],
    )


def controls(report: Mapping[str, Any]) -> Part:
    """Return what artefacts and hidden lesions do to it."""
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


def subgroups(report: Mapping[str, Any]) -> Part:
    """Return every group of people on its own; those too small are named in a sentence."""
    told, small = [], []
    for axis, groups in report["subgroups"].items():
        told += [(axis, name, row) for name, row in groups.items() if row["n_lesions"] >= MIN_LESIONS]
        few = [f"{name} ({row['n_lesions']})" for name, row in groups.items() if row["n_lesions"] < MIN_LESIONS]
        small += [f"{axis}: {', '.join(few)}"] if few else []
    tables = [
        Table(
            ("by", "group", "images (lesions)", *columns.values()),
            [
                [axis, name, f"{row['n']} ({row['n_lesions']})", *(figure(row[key], 2) for key in columns)]
                for axis, name, row in told
            ],
        )
        for columns in (_RIGHT, _HONEST)
    ]
    return Part(
        "subgroups",
        "Does it serve everyone alike?",
        [
            report["skin_tone"],
            *([f"Below {MIN_LESIONS} lesions, so not scored: {'; '.join(small)}."] if small else []),
        ],
        tables if told else (),
        note="Groups differ in which diagnoses they hold, so differences need care. n/a: too few lesions of one kind "
        "(metrics.json says which; it also holds Brier score, log loss and the sensitivity of each diagnosis).",
    )


_RIGHT = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC, malignant or premalignant",
    "referral_sensitivity": "of those, at or above the threshold",
    "referral_specificity": "of the others, left alone",
}
_HONEST = {
    "ece": "calibration error",
    "coverage": "set holds the truth",
    "ok": "answered ok",
    "accuracy_ok": "accuracy where ok",
    "rejected": "rejected",
}


GALLERY = 12
NEIGHBOURS = 3
Explain = Callable[[int], Explanation]


def gallery(answers: Answers, names: Sequence[str], explain: Explain) -> Part:
    """Return the gravest errors with their heat maps; `names` (n,) and `explain` as in `report.write_report`."""
    shots = []
    examples = answers.bundle.examples() if answers.bundle.has_examples else None
    for row in gravest(answers):
        explanation = explain(row)
        truth, given = (answers.bundle.codes[int(c)] for c in (answers.y_true[row], answers.decision[row]))
        share = answers.probability[row, answers.decision[row]]
        label = f"{display_name(truth)}, called {display_name(given)} ({share:.0%}), {answers.predictions[row].status}"
        embedding = answers.predictions[row].embedding
        near = () if examples is None or embedding is None else examples.nearest(embedding, NEIGHBOURS)
        note = f"Nearest in training: {neighbours_words(near)}" if near else ""
        shots.append(Shot((explanation.image, explanation.overlay()), label, names[row], note))
    return Part(
        "failures",
        "Where it fails",
        [
            "The gravest errors: malignant or premalignant lesions called benign, the surest first, then other errors. "
            "On the right, what spoke for the diagnosis that it gave."
            + (" Below, the training lesions most like it to the network, with their diagnosis." if examples else "")
        ],
        shots=shots,
        note="" if shots else "It made no errors here.",
    )


def gravest(answers: Answers, most: int = GALLERY) -> list[int]:
    """Return the rows of the gravest errors: what is malignant called benign first, then the surest ones."""
    wrong = np.flatnonzero(~answers.right)
    grave = [answers.bundle.codes.index(code) for code in grave_codes(answers.bundle.codes)]
    missed = np.isin(answers.y_true[wrong], grave) & ~np.isin(answers.decision[wrong], grave)
    sure = answers.probability[wrong, answers.decision[wrong]]
    order = np.lexsort((-sure, ~missed))
    return [int(row) for row in wrong[order][:most]]
