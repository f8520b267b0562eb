"""The report's sections on trust: calibration, status, sets, referral, novelty, artefacts, groups, failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dermlens.bundle.card_text import bias_words
from dermlens.bundle.trust import grave_codes
from dermlens.diagnoses import display_name
from dermlens.evaluation.subgroups import MIN_LESIONS
from dermlens.evaluation.trust_figures import STATUSES, Answers
from dermlens.inference.explain import Explanation
from dermlens.reporting.plots import benefit_png, reliability_by_class_png, reliability_png
from dermlens.reporting.terminal import neighbours_words
from dermlens.text import figure

GALLERY = 12
NEIGHBOURS = 3
Explain = Callable[[int], Explanation]


@dataclass(frozen=True)
class Table:
    """A table of text; a cell that begins with "#" links to the section of that name."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class Shot:
    """Pictures of one case side by side, uint8 RGB, with the text under them; `note` may be empty."""

    pictures: Sequence[npt.NDArray[np.uint8]]
    label: str
    name: str
    note: str = ""


@dataclass(frozen=True, eq=False)
class Part:
    """One section of the page; `key` is what links point to, `plots` are (PNG, caption)."""

    key: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[tuple[bytes, str]] = ()
    shots: Sequence[Shot] = ()
    note: str = ""


def calibration(report: Mapping[str, Any]) -> Part:
    """Return whether the probabilities mean what they say."""
    found = report["calibration"]
    both = [found[when] for when in ("before", "after")]
    names = {"ece": "expected calibration error", "brier": "Brier score", "log_loss": "log loss"}
    rows = [[name, *(f"{each[key]:.4f}" for each in both)] for key, name in names.items()]
    classes = [
        [display_name(code), *(f"{each['classwise_ece'][code]:.4f}" for each in both)]
        for code in found["classwise_ece"]
    ]
    chance, test = found["chance"], found["bias_test"]
    biases = ", ".join(f"{code} {value:+.2f}" for code, value in found["bias"].items())
    return Part(
        "calibration",
        "Do its probabilities mean what they say?",
        [
            f"Temperature {found['temperature']:.3f}, fitted on other lesions. Bins hold equally many images.",
            *([] if test is None else [bias_words(test)]),
            *([f"Biases: {biases}."] if any(found["bias"].values()) else []),
            f"With so few lesions even perfect probabilities would show a calibration error of {chance['mean']:.3f}, "
            f"and in 1 of 20 cases more than {chance['high']:.3f}.",
        ],
        [
            Table(("", "before", "after"), rows),
            Table(("calibration error of the probability of", "before", "after"), classes),
        ],
        [
            (
                reliability_png(*(each["reliability"] for each in both)),
                "How often the most probable class is correct, by its probability.",
            ),
            (
                reliability_by_class_png(*(each["classwise_reliability"] for each in both)),
                "How often a lesion is of the class, by the probability of that class. Each bin is expected to hold "
                "equally many lesions of the class; the axes of a rare class end earlier.",
            ),
        ],
    )


def status(report: Mapping[str, Any]) -> Part:
    """Return how often it is uncertain or rejects an image, and whether that is justified."""
    found = report["status"]
    rows = [
        [name, str(found[name]["n"]), figure(found[name]["share"], 2), figure(found[name]["accuracy"], 2)]
        for name in ("all", *STATUSES)
    ]
    most_common = sorted(found["reasons"].items(), key=lambda item: -item[1])
    reasons = [[code, str(n), found["reason_words"][code]] for code, n in most_common]
    return Part(
        "status",
        "Does it know when it does not know?",
        ["Each answer is ok, uncertain or rejected. All these images show lesions, so each rejection is a loss."],
        [
            Table(("status", "images", "share", "accuracy"), rows),
            Table(("reason", "images", "message of one of them"), reasons),
        ],
    )


def sets(report: Mapping[str, Any]) -> Part:
    """Return how often the prediction sets contain the true class, and how large they are."""
    found = report["prediction_sets"]
    if found is None:
        return Part("sets", "Prediction sets", ["This bundle has none: too few calibration lesions."])
    classes = {display_name(code): row for code, row in found["per_class"].items() if row["n"]}
    rows = [
        [name, str(row["n_lesions"]), figure(row["coverage"]), f"{row['mean_size']:.2f}"]
        for name, row in {"all": found, **classes}.items()
    ]
    sizes = ", ".join(f"{n} of size {size}" for size, n in found["by_size"].items())
    return Part(
        "sets",
        "Which diagnoses cannot be ruled out?",
        [
            f"Each answer comes with a set of diagnoses. It should contain the true one for {found['level'] * 100:.0f} "
            "% of the lesions of every class, rare ones too (class-conditional split conformal prediction). "
            f"Images: {sizes}."
        ],
        [Table(("class", "lesions", "coverage", "mean size"), rows)],
        note="Each lesion counts once; Wilson intervals.",
    )


def referral(report: Mapping[str, Any]) -> Part:
    """Return whom it would refer, and at what cost."""
    measures = ("sensitivity", "specificity", "referred", "net_benefit")
    rows = [
        [
            point["name"] + (" (in use)" if point["name"] == report["referral"] else ""),
            " ".join(point["codes"]),
            f"{point['threshold']:.3f}",
            *(figure(point[name]) for name in measures),
        ]
        for point in report["operating_points"]
    ]
    curves = report["decision_curves"]
    header = ("operating point", "classes", "threshold", *(name.replace("_", " ") for name in measures))
    return Part(
        "referral",
        "Whom would it refer to a specialist?",
        ["The thresholds were chosen for 90 and 95 % sensitivity on calibration lesions. On these lesions they reach:"],
        [Table(header, rows)] if rows else (),
        [(benefit_png(curves), "Decision curves (Vickers and Elkin 2006): higher is better.")] if curves else (),
        note="" if rows else "No operating points: too few lesions, or no malignant class.",
    )


def novelty(report: Mapping[str, Any]) -> Part:
    """Return how novel these images look to the model, and what other thresholds would do."""
    found, title = report.get("novelty"), "Does it notice what it was not trained for?"
    if not found:
        return Part("novelty", title, ["This bundle has no novelty score."])
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
        title,
        [
            f"An image with a novelty score above {found['threshold']:.3f} is rejected. {found['kept'] * 100:.1f} % of "
            f"these images are at or below it, half of them at or below {found['quantiles']['0.5']:.3f}. The project's "
            "benchmarks measure for the embedded model whether it notices other images."
        ],
        [Table(("threshold", "images at or below it", "accuracy on these"), rows)],
    )


def controls(report: Mapping[str, Any]) -> Part:
    """Return how artefacts and a hidden lesion change its answers."""
    found, title = report["controls"], "Does its answer depend on the lesion?"
    if found is None:
        return Part("controls", title, ["Not tested; run evaluate with --controls."])
    watched = " + ".join(display_name(code) for code in found["watched"])
    columns = {
        "flip_rate": "diagnoses that change",
        "watched_change": f"change of P({watched})",
        "watched_change_absolute": "the same, absolute",
        "accuracy_change": "change of accuracy",
    }
    rows = [[name, *(figure(row[key]) for key in columns)] for name, row in found["artefacts"].items()]
    without = [
        [name, figure(row["balanced_accuracy"]), f"{row['chance']:.3f}"]
        for name, row in found["without_lesion"].items()
    ]
    return Part(
        "controls",
        title,
        [
            f"{found['images']} images of {found['lesions']} lesions, each compared with itself under a synthetic "
            "artefact. In the second table the lesion is hidden: what is above chance comes from its surroundings."
        ],
        [Table(("artefact", *columns.values()), rows), Table(("image", "balanced accuracy", "chance"), without)],
    )


_CORRECT = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC, malignant or premalignant",
    "referral_sensitivity": "sensitivity of referral",
    "referral_specificity": "specificity of referral",
}
_HONEST = {
    "ece": "calibration error",
    "coverage": "set contains the true class",
    "ok": "answered ok",
    "accuracy_ok": "accuracy where ok",
    "rejected": "rejected",
}


def subgroups(report: Mapping[str, Any]) -> Part:
    """Return the figures of each group of people; those too small are named in a sentence."""
    large, small = [], []
    for axis, groups in report["subgroups"].items():
        large += [(axis, name, row) for name, row in groups.items() if row["n_lesions"] >= MIN_LESIONS]
        few = [f"{name} ({row['n_lesions']})" for name, row in groups.items() if row["n_lesions"] < MIN_LESIONS]
        small += [f"{axis}: {', '.join(few)}"] if few else []
    tables = [
        Table(
            ("by", "group", "images (lesions)", *columns.values()),
            [
                [axis, name, f"{row['n']} ({row['n_lesions']})", *(figure(row[key], 2) for key in columns)]
                for axis, name, row in large
            ],
        )
        for columns in (_CORRECT, _HONEST)
    ]
    not_scored = f"Fewer than {MIN_LESIONS} lesions, so not scored: {'; '.join(small)}."
    return Part(
        "subgroups",
        "Is it equally good for everyone?",
        [report["skin_tone"], *([not_scored] if small else [])],
        tables if large else (),
        note="Groups differ in their mix of diagnoses, so compare with care. n/a: too few lesions of one kind "
        "(metrics.json gives the reason, and also Brier score, log loss and the sensitivity for each diagnosis).",
    )


def gallery(answers: Answers, names: Sequence[str], explain: Explain) -> Part:
    """Return the worst errors with their heat maps; `names` (n,) and `explain` as in `report.write_report`."""
    shots = []
    bundle = answers.bundle
    examples = bundle.examples() if bundle.has_examples else None
    for row in worst_errors(answers):
        explanation, prediction = explain(row), answers.predictions[row]
        truth, given = (bundle.codes[int(c)] for c in (answers.y_true[row], answers.decision[row]))
        share = answers.probability[row, answers.decision[row]] * 100
        label = f"{display_name(truth)}, called {display_name(given)} ({share:.0f} %), {prediction.status}"
        embedding = prediction.embedding
        near = () if examples is None or embedding is None else examples.nearest(embedding, NEIGHBOURS)
        note = f"Nearest in training: {neighbours_words(near)}" if near else ""
        shots.append(Shot((explanation.image, explanation.overlay()), label, names[row], note))
    return Part(
        "failures",
        "Where it fails",
        [
            "The worst errors: first malignant or premalignant lesions called benign, the most confident first, then "
            "other errors. On the right, the evidence for the diagnosis that it gave."
            + (
                " Below, the training lesions that the network finds most similar, with their diagnosis."
                if examples
                else ""
            )
        ],
        shots=shots,
        note="" if shots else "It made no errors here.",
    )


def worst_errors(answers: Answers, most: int = GALLERY) -> list[int]:
    """Return the rows of the worst errors: malignant lesions called benign first, then the most confident ones."""
    wrong = np.flatnonzero(~answers.right)
    grave = answers.places(grave_codes(answers.bundle.codes))
    missed = np.isin(answers.y_true[wrong], grave) & ~np.isin(answers.decision[wrong], grave)
    confidence = answers.probability[wrong, answers.decision[wrong]]
    order = np.lexsort((-confidence, ~missed))
    return [int(row) for row in wrong[order][:most]]
