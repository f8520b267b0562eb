"""bundle.json -> MODEL_CARD.md: the same facts for people, never written by hand (Mitchell et al. 2019).

What to know before trusting a model that somebody else made, in a few lines.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dermlens.diagnoses import DISCLAIMER
from dermlens.text import figure, one_line

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


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide about a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def model_card(card: Mapping[str, Any]) -> str:
    """Return the model card as Markdown."""
    parts = [
        _head(card),
        _data(card),
        _metrics(card),
        _probe(card),
        *_trust(card),
        _limits(card),
        _licence(card),
    ]
    return "\n\n".join(parts) + "\n"


def _head(card: Mapping[str, Any]) -> str:
    backbone, recipe = card["backbone"], card["recipe"]
    started = _STARTED.get(recipe["weights"], recipe["weights"])
    started += f" ({backbone['licence']})" if recipe["weights"] in _PUBLIC else ""
    classes = ", ".join(f"{c['code']} ({c['name']})" for c in card["classes"])
    leaky = "\n\n**LEAKY: training and test share images or lesions; the figures below are too good.**"
    return (
        f"# {card['name']} {card['version']}\n\n{card['scope']}\n\n"
        f"{DISCLAIMER}{leaky if card['data']['leaky'] else ''}\n\n"
        f"- Network: {backbone['title']} from {started}, {_trained(recipe)}\n"
        f"- Input: {card['input']['size_px']} x {card['input']['size_px']} px RGB, framing {card['input']['framing']}\n"
        f"- Classes: {classes}\n"
        f"- Decision rule: {card['decision_rule']['kind']}; {_calibration(card)}\n"
        f"- Made {card['created']} in {card['training']['minutes']} minutes; "
        f"best epoch {card['training']['best_epoch']}"
    )


def _trained(recipe: Mapping[str, Any]) -> str:
    mode = recipe["fine_tune"]
    if mode == "top":
        return f"blocks after {recipe['cut_block']} fine-tuned"
    return {"head": "the last layer trained", "full": "the whole network fine-tuned"}[mode]


def _calibration(card: Mapping[str, Any]) -> str:
    fit = card["calibration_fit"]
    if not fit["fitted"]:
        return f"probabilities are NOT calibrated ({fit['reason']})"
    found, biases = card["calibration"], ""
    if any(found["bias"]):
        codes = (each["code"] for each in card["classes"])
        biases = ", biases " + ", ".join(f"{c} {b:+.2f}" for c, b in zip(codes, found["bias"], strict=True))
    words = f" {bias_words(fit['bias'])}" if fit["bias"] else ""
    return (
        f"probabilities calibrated on {fit['lesions']} lesions (temperature {found['temperature']:.3f}{biases}).{words}"
    )


def _data(card: Mapping[str, Any]) -> str:
    data = card["data"]
    lines = [
        "## Data and roles",
        "",
        *(f"- {s}" for s in data["sources"]),
        *(f"- {n}" for n in data["notes"]),
    ]
    lines += [f"- Audit: {line}" for line in data["audit"]]
    lines += ["", _roles_sentence(data), ""]
    lines += ["| class | train | select | calibrate | test |", "|---|---|---|---|---|"]
    for code, roles in data["roles"].items():
        cells = (roles.get(r, (0, 0)) for r in ("train", "select", "calibrate", "test"))
        lines.append(f"| {code} | " + " | ".join(f"{n} ({g})" for n, g in cells) + " |")
    shortcut = card.get("source_alone")
    if shortcut:
        lines += ["", shortcut["sentence"]]
    return "\n".join(lines)


def _roles_sentence(data: Mapping[str, Any]) -> str:
    if data["leaky"]:
        return "Images (lesions) by role; pictures or lesions stand in more than one role:"
    if data["lesions_known"] < 1:
        return (
            f"Images (lesions) by role. The lesion is known for {data['lesions_known']:.1%} of the images, and no "
            "known lesion stands in two roles; each other picture counts as a lesion of its own:"
        )
    return "Images (lesions) by role; no lesion stands in two roles:"


def _metrics(card: Mapping[str, Any]) -> str:
    metrics = card["metrics"]
    lines = [
        "## Results on the test role",
        "",
        _test_sentence(card),
        "95 % intervals from a bootstrap over lesions; below some 20 lesions in a class they are too narrow.",
        "",
        "| measure | value |",
        "|---|---|",
    ]
    names = ("balanced_accuracy", "accuracy", "macro_auc", "ece", "brier", "log_loss")
    lines += [f"| {name.replace('_', ' ')} | {figure(metrics[name])} |" for name in names if name in metrics]
    lines += ["", "| class | n | sensitivity | specificity | AUC |", "|---|---|---|---|---|"]
    for code, row in metrics["per_class"].items():
        cells = (str(row["n"]), *(figure(row[name]) for name in ("sensitivity", "specificity", "auc")))
        lines.append(f"| {code} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _test_sentence(card: Mapping[str, Any]) -> str:
    metrics, data = card["metrics"], card["data"]
    unit = "lesions" if data["lesions_known"] == 1 else "lesions as far as they are known"
    counted = f"{metrics['n']} images of {metrics['n_lesions']} {unit}"
    if data["leaky"]:
        return f"{counted}. The model has met some of them, or their lesions, in training: these figures are too good."
    return f"{counted} that had no part in training, selection or calibration."


def _probe(card: Mapping[str, Any]) -> str:
    probe, start, found = card["probe"], card["recipe"]["weights"], card["baselines"]
    names = ("balanced_accuracy", "accuracy", "macro_auc")
    columns = {
        f"always {found['majority_class']}": found["methods"]["majority"],
        "linear probe": probe,
        "this model": card["metrics"],
    }
    lines = [
        "## Against the simplest answers",
        "",
        f"The linear probe is a logistic regression on the frozen features of {_STARTED.get(start, start)}, same "
        "images, same roles:",
        "",
        f"| | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for name in names:
        cells = (figure(column[name]) if name in column else "" for column in columns.values())
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    lines += [
        "",
        _difference(probe) + ("" if probe["converged"] else " The probe did not converge; it could be better."),
    ]
    return "\n".join([*lines, *(f"\n{sentence}" for sentence in found["words"])])


def _difference(probe: Mapping[str, Any]) -> str:
    gap = figure(probe["model_minus_probe_balanced_accuracy"])
    return f"Difference in balanced accuracy to the probe, paired over lesions: {gap}."


def _trust(card: Mapping[str, Any]) -> list[str]:
    """What the bundle knows of its own limits, and what that reaches; nothing where it was not measured."""
    facts = card["trust"]
    if not facts["measured"]:
        return []
    fitted, measured = facts["fitted_on"], facts["measured"]
    where = "the test role" if measured["role"] == "test" else "the lesions they were fitted on (too good)"
    lines = [
        "## Knowing its limits",
        "",
        f"Fitted on {fitted['lesions']} lesions of the calibrate role, measured on {where}, "
        f"{measured['images']} images of {measured['lesions']} lesions.",
        "",
        "| answer | share | accuracy |",
        "|---|---|---|",
        f"| all | 100.0% | {measured['accuracy']:.3f} |",
    ]
    for name, row in measured["status"].items():
        accuracy = "n/a" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
        lines.append(f"| {name} | {row['share']:.1%} | {accuracy} |")
    return ["\n".join([*lines, *_sets(facts), *_points(facts), *_neighbours(facts)])]


def _sets(facts: Mapping[str, Any]) -> list[str]:
    sets = facts["measured"]["prediction_sets"]
    if sets is None:
        return ["", "No prediction sets: too few calibration lesions."]
    basis = facts["prediction_sets"]["basis"]
    words = {
        "own": "its own lesions",
        "own_and_pool": "its own lesions and those of all rare classes",
        "pool": "the rare classes together; no guarantee for it alone",
        "none": "nothing: it is never left out",
    }
    lines = [
        "",
        f"Prediction sets aim to hold the true class for {facts['prediction_sets']['level']:.0%} of the lesions of "
        f"each class; they did for {figure(sets['coverage'])} of all, with {sets['mean_size']:.2f} classes on average.",
        "",
        "| class | lesions | coverage | mean size | limit rests on |",
        "|---|---|---|---|---|",
    ]
    for code, row in sets["per_class"].items():
        if row["n"]:
            cells = (str(row["n_lesions"]), figure(row["coverage"]), f"{row['mean_size']:.2f}")
            lines.append(f"| {code} | " + " | ".join(cells) + f" | {words[basis[code]['basis']]} |")
    return lines


def _points(facts: Mapping[str, Any]) -> list[str]:
    if not facts["operating_points"]:
        return ["", "No referral thresholds: nothing malignant among the classes, or too few lesions."]
    lines = ["", "| operating point | classes | threshold | sensitivity | specificity |", "|---|---|---|---|---|"]
    for point in facts["operating_points"]:
        mark = " (in use)" if point["name"] == facts["referral"] else ""
        cells = (f"{point['threshold']:.3f}", figure(point["sensitivity"]), figure(point["specificity"]))
        lines.append(f"| {point['name']}{mark} | {' '.join(point['codes'])} | " + " | ".join(cells) + " |")
    return lines


def _neighbours(facts: Mapping[str, Any]) -> list[str]:
    known = facts["neighbours"]
    if not known:
        return []
    return [
        "",
        f"It names the nearest of {known['lesions']} training lesions by ISIC id or file name "
        "(`predict --neighbours K`); it keeps none of their pictures.",
    ]


def _limits(card: Mapping[str, Any]) -> str:
    lines = ["## Not tested on", ""]
    lines += [f"- {line}" for line in card["data"]["not_tested_on"]] or ["- anything but the test role above"]
    return "\n".join(lines)


def _licence(card: Mapping[str, Any]) -> str:
    return f"## Licence\n\nWeights: {card['licence']['weights']}. Code: {card['licence']['code']}."


def signature_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the facts of `packing.signature` in words; what the card says cannot make a line of its own."""
    tested = facts["tested_on"]
    score = f"{figure(facts['balanced_accuracy'])} on {tested['images']} images of {tested['lesions']} lesions"
    melanoma = f"; melanoma AUC {figure(facts['melanoma_auc'])}" if facts["melanoma_auc"] else ""
    lines = {
        "reads": facts["scope"],
        "classes": ", ".join(facts["classes"]),
        "trained on": ", ".join(facts["trained_on"]) or f"{facts['images']} images of unnamed source",
        "balanced accuracy": score + melanoma + " (as its maker measured it)",
        "licence": f"weights {facts['licence']['weights']}; code {facts['licence']['code']}",
        "SHA-256": facts["sha256"],
        "known": facts["known"] or "NO: compare the SHA-256 with what its maker published, by another way",
    }
    width = max(map(len, lines))
    warnings = [
        *(["LEAKY: training and test shared images or lesions; its figures are too good."] * facts["leaky"]),
        *(["Its probabilities are NOT calibrated."] * (not facts["calibrated"])),
        *(["It does not know its limits: it answers for any picture."] * (not facts["knows_its_limits"])),
    ]
    told = [f"  {name:{width}}  {one_line(value)}" for name, value in lines.items()]
    title = one_line(f"{facts['name']} {facts['version']}")
    return [title, *told, *(f"  {line}" for line in [*warnings, DISCLAIMER])]


def bias_words(test: Mapping[str, Any]) -> str:
    """Say in a sentence what `BiasTest.as_dict` holds."""
    if test["reason"]:
        return f"No bias by class: {test['reason']}."
    return (
        f"A bias for each class is {'used' if test['kept'] else 'not used'}: on lesions that did not fit it, the log "
        f"loss is {test['log_loss_bias']:.4f} with it and {test['log_loss_temperature']:.4f} with the temperature "
        f"alone, {abs(test['gain']):.4f} {'less' if test['gain'] > 0 else 'more'} at a standard error of "
        f"{test['standard_error']:.4f}."
    )
