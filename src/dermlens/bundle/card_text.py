"""The facts of a model and their words, one source for every place that shows them.

`model_card` is MODEL_CARD.md (Mitchell et al. 2019). `model_facts` are the few things to know before one trusts a model
that somebody else made: as JSON (`models --json`, the API), and by `fact_lines` and `warnings` in words (the terminal,
a notebook, `models add`).
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dermlens.bundle.card import Card
from dermlens.diagnoses import DISCLAIMER, display_name
from dermlens.text import Figure, figure, one_line

PACKAGES = (
    "dermlens",
    "keras",
    "tensorflow",
    "openvino",
    "numpy",
    "scikit-learn",
    "opencv-python-headless",
    "pillow",
)
_PUBLIC = ("pretrained", "imagenet", "lite")
_STARTED = {**dict.fromkeys(_PUBLIC, "ImageNet weights"), "none": "random weights"}
_TRAINED = {"head": "the last layer trained", "full": "the whole network fine-tuned"}
_ROLES = ("train", "select", "calibrate", "test")
_COMPARED = ("balanced_accuracy", "accuracy", "macro_auc")
_BASIS = {
    "own": "its own lesions",
    "own_and_pool": "its own lesions and those of all rare classes",
    "pool": "the rare classes together; no guarantee for this class alone",
    "none": "nothing: the class is never left out",
}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide about a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def model_facts(card: Card) -> dict[str, Any]:
    """Return what to know before one trusts a model, ready for JSON."""
    data, metrics = card.data, card.metrics
    melanoma = metrics.per_class.get("MEL")
    return {
        "name": card.name,
        "version": card.version,
        "created": card.created,
        "scope": card.scope,
        "modality": card.modality,
        "classes": [each.code for each in card.classes],
        "input": {"size_px": card.input.size_px, "framing": card.input.framing},
        "licence": card.licence.as_dict(),
        "weights_licence": card.licence.weights,
        "trained_on": list(data.sources),
        "images": data.images,
        "tested_on": {"images": metrics.n, "lesions": metrics.n_lesions},
        "not_tested_on": list(data.not_tested_on),
        "balanced_accuracy": metrics.balanced_accuracy,
        "melanoma_auc": melanoma and melanoma["auc"],
        "leaky": data.leaky,
        "calibrated": card.calibration_fit.fitted,
        "knows_its_limits": card.trust.novelty is not None,
    }


def fact_lines(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what `model_facts` says as label -> text; what a card says cannot make a line of its own."""
    tested = facts["tested_on"]
    score = f"{figure(facts['balanced_accuracy'])} on {tested['images']} images of {tested['lesions']} lesions"
    melanoma = f"; melanoma AUC {figure(facts['melanoma_auc'])}" if facts["melanoma_auc"] else ""
    size = facts["input"]["size_px"]
    lines = {
        "reads": facts["scope"],
        "classes": ", ".join(class_words(code, display_name(code)) for code in facts["classes"]),
        "input": f"{size} x {size} px, framing {facts['input']['framing']}",
        "trained on": "; ".join(facts["trained_on"]) or f"{facts['images']} images of unnamed source",
        "balanced accuracy": f"{score}{melanoma} (measured by its maker)",
        "licence": f"weights {facts['licence']['weights']}; code {facts['licence']['code']}",
        "SHA-256": facts["sha256"],
    }
    return {label: one_line(words) for label, words in lines.items()}


def warnings(facts: Mapping[str, Any]) -> list[str]:
    """Return what makes a model less dependable than others, a sentence each."""
    found = {
        "LEAKY: training and test shared images or lesions; its figures are too good.": facts["leaky"],
        "Its probabilities are NOT calibrated.": not facts["calibrated"],
        "It does not know its limits: it answers every image.": not facts["knows_its_limits"],
    }
    return [sentence for sentence, true in found.items() if true]


def class_words(code: str, name: str) -> str:
    """Return a class's name with its code, or the code alone where it has no other name."""
    return name if name == code else f"{name} ({code})"


def bias_words(test: Mapping[str, Any]) -> str:
    """Say in a sentence what `evaluation.calibration.BiasTest.as_dict` holds."""
    if test["reason"]:
        return f"No bias by class: {test['reason']}."
    return (
        f"A bias for each class is {'used' if test['kept'] else 'not used'}: on lesions that it was not fitted on, the "
        f"log loss is {test['log_loss_bias']:.4f} with it and {test['log_loss_temperature']:.4f} with the temperature "
        f"alone, {abs(test['gain']):.4f} {'less' if test['gain'] > 0 else 'more'} at a standard error of "
        f"{test['standard_error']:.4f}."
    )


def model_card(card: Card) -> str:
    """Return the model card as Markdown."""
    limits = [f"- {line}" for line in card.data.not_tested_on] or ["- anything but the test role above"]
    parts = [
        _head(card),
        _data(card),
        _metrics(card),
        _probe(card),
        *_trust(card),
        "\n".join(["## Not tested on", "", *limits]),
        f"## Licence\n\nWeights: {card.licence.weights}. Code: {card.licence.code}.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    names = list(header)
    return ["", *(f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *rows))]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _head(card: Card) -> str:
    weights, mode = str(card.recipe["weights"]), str(card.recipe["fine_tune"])
    started = _STARTED.get(weights, weights) + (f" ({card.backbone.licence})" if weights in _PUBLIC else "")
    trained = _TRAINED.get(mode) or f"blocks after {card.recipe['cut_block']} fine-tuned"
    side = card.input.size_px
    facts = {
        "Network": f"{card.backbone.title} from {started}, {trained}",
        "Input": f"{side} x {side} px RGB, framing {card.input.framing}",
        "Classes": ", ".join(class_words(each.code, each.name) for each in card.classes),
        "Decision rule": f"{card.decision_rule.kind}; {_calibration(card)}",
        "Trained": f"{card.created}, in {card.training.minutes} minutes; best epoch {card.training.best_epoch}",
    }
    leaky = "\n\n**LEAKY: training and test share images or lesions; the figures below are too good.**"
    return (
        f"# {card.name} {card.version}\n\n{card.scope}\n\n{DISCLAIMER}{leaky if card.data.leaky else ''}\n\n"
        + "\n".join(f"- {label}: {words}" for label, words in facts.items())
    )


def _calibration(card: Card) -> str:
    fit, found, biases = card.calibration_fit, card.calibration, ""
    if not fit.fitted:
        return f"probabilities are NOT calibrated ({fit.reason})"
    if any(found.bias):
        each = (f"{c.code} {bias:+.2f}" for c, bias in zip(card.classes, found.bias, strict=True))
        biases = f", biases {', '.join(each)}"
    words = f" {bias_words(fit.bias)}" if fit.bias else ""
    return f"probabilities calibrated on {fit.lesions} lesions (temperature {found.temperature:.3f}{biases}).{words}"


def _data(card: Card) -> str:
    data = card.data
    lines = [f"- {line}" for line in (*data.sources, *data.notes, *(f"Audit: {line}" for line in data.audit))]
    cells = (
        (code, *(f"{n} ({lesions})" for n, lesions in (roles.get(role, (0, 0)) for role in _ROLES)))
        for code, roles in data.roles.items()
    )
    source = ["", card.source_alone.sentence] if card.source_alone else []
    return "\n".join(
        ["## Data and roles", "", *lines, "", _roles_sentence(card), *_table(("class", *_ROLES), cells), *source]
    )


def _roles_sentence(card: Card) -> str:
    if card.data.leaky:
        return "Images (lesions) by role; some images or lesions are in more than one role:"
    if card.data.lesions_known < 1:
        return (
            f"Images (lesions) by role. The lesion is known for {card.data.lesions_known:.1%} of the images, and no "
            "known lesion is in two roles; each other image counts as a lesion of its own:"
        )
    return "Images (lesions) by role; no lesion is in two roles:"


def _metrics(card: Card) -> str:
    metrics = card.metrics
    unit = "lesions" if card.data.lesions_known == 1 else "lesions as far as they are known"
    counted = f"{metrics.n} images of {metrics.n_lesions} {unit}"
    if card.data.leaky:
        counted += ". Some of them, or their lesions, were in the training: these figures are too good."
    else:
        counted += " that had no part in training, selection or calibration."
    measures: dict[str, Figure] = {name: getattr(metrics, name) for name in (*_COMPARED, "ece", "brier", "log_loss")}
    names = ("sensitivity", "specificity", "auc")
    rows = (
        (code, str(row["n"]), figure(row["sensitivity"]), figure(row["specificity"]), figure(row["auc"]))
        for code, row in metrics.per_class.items()
    )
    return "\n".join(
        [
            "## Results on the test role",
            "",
            counted,
            "95 % intervals from a bootstrap over lesions; with fewer than 20 lesions in a class they are too narrow.",
            *_table(("measure", "value"), ((_words(name), figure(value)) for name, value in measures.items())),
            *_table(("class", "n", *names[:2], "AUC"), rows),
        ]
    )


def _probe(card: Card) -> str:
    probe, weights = card.probe, str(card.recipe["weights"])
    majority: Mapping[str, Any] = card.baselines.methods.get("majority", {})
    columns = (f"always {card.baselines.majority_class}", "linear probe", "this model")
    rows = (
        (
            _words(name),
            figure(majority[name]) if name in majority else "",
            figure(getattr(probe, name)),
            figure(getattr(card.metrics, name)),
        )
        for name in _COMPARED
    )
    gap = figure(probe.model_minus_probe_balanced_accuracy)
    converged = "" if probe.converged else " The probe did not converge; it could be better."
    return "\n".join(
        [
            "## Against the simplest answers",
            "",
            f"The linear probe is a logistic regression on the frozen features of {_STARTED.get(weights, weights)}, "
            "with the same images in the same roles:",
            *_table(("", *columns), rows),
            "",
            f"Difference in balanced accuracy to the probe, paired over lesions: {gap}.{converged}",
            *(f"\n{sentence}" for sentence in card.baselines.words),
        ]
    )


def _trust(card: Card) -> list[str]:
    """What the model knows of its own limits and what they reach; nothing where it was not measured."""
    facts, measured = card.trust, card.trust.measured
    if measured is None or facts.fitted_on is None:
        return []
    where = "the test role" if measured.role == "test" else "the lesions that they were fitted on (too good)"
    rows = [("all", "100.0%", f"{measured.accuracy:.3f}")]
    for name, row in measured.status.items():
        rows.append((name, f"{row.share:.1%}", "n/a" if row.accuracy is None else f"{row.accuracy:.3f}"))
    lines = [
        "## Knowing its limits",
        "",
        f"Fitted on {facts.fitted_on['lesions']} lesions of the calibrate role, measured on {where}, "
        f"{measured.images} images of {measured.lesions} lesions.",
        *_table(("answer", "share", "accuracy"), rows),
        *_sets(card),
        *_points(card),
    ]
    if facts.neighbours:
        lines += [
            "",
            f"It names the nearest of {facts.neighbours['lesions']} training lesions by ISIC id or file name "
            "(`predict --neighbours K`); it stores none of their images.",
        ]
    return ["\n".join(lines)]


def _sets(card: Card) -> list[str]:
    sets = card.trust.prediction_sets
    measured = card.trust.measured.prediction_sets if card.trust.measured else None
    if sets is None or measured is None:
        return ["", "No prediction sets: too few calibration lesions."]
    basis = sets.basis or {}
    rows = (
        (
            code,
            str(row["n_lesions"]),
            figure(row["coverage"]),
            f"{row['mean_size']:.2f}",
            _BASIS[basis[code].basis] if code in basis else "",
        )
        for code, row in measured["per_class"].items()
        if row["n"]
    )
    return [
        "",
        f"Prediction sets aim to hold the true class for {sets.level:.0%} of the lesions of each class. They did for "
        f"{figure(measured['coverage'])} of all lesions, with {measured['mean_size']:.2f} classes on average.",
        *_table(("class", "lesions", "coverage", "mean size", "the limit rests on"), rows),
    ]


def _points(card: Card) -> list[str]:
    if not card.trust.operating_points:
        return ["", "No referral thresholds: none of the classes is malignant, or there are too few lesions."]
    rows = (
        (
            point.name + (" (in use)" if point.name == card.trust.referral else ""),
            " ".join(point.codes),
            f"{point.threshold:.3f}",
            figure(point.sensitivity),
            figure(point.specificity),
        )
        for point in card.trust.operating_points
    )
    return _table(("operating point", "classes", "threshold", "sensitivity", "specificity"), rows)
