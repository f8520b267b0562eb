"""bundle.json -> MODEL_CARD.md: the same facts for people, never written by hand (Mitchell et al. 2019)."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dermlens.inference.predict import DISCLAIMER
from dermlens.reporting.figures import figure

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
        _limits(card),
        _licence(card),
    ]
    return "\n\n".join(parts) + "\n"


def _head(card: Mapping[str, Any]) -> str:
    backbone, recipe = card["backbone"], card["recipe"]
    words = {"pretrained": f"ImageNet weights ({backbone['licence']})", "none": "random weights"}
    started = words.get(recipe["weights"], recipe["weights"])
    classes = ", ".join(f"{c['code']} ({c['name']})" for c in card["classes"])
    leaky = "\n\n**LEAKY: training and test share images or lesions; the figures below are too good.**"
    return (
        f"# {card['name']} {card['version']}\n\n{card['scope']}\n\n"
        f"{DISCLAIMER}{leaky if card['data']['leaky'] else ''}\n\n"
        f"- Network: {backbone['title']} from {started}, blocks after {recipe['cut_block']} fine-tuned\n"
        f"- Input: {card['input']['size_px']} x {card['input']['size_px']} px RGB, framing {card['input']['framing']}\n"
        f"- Classes: {classes}\n"
        f"- Decision rule: {card['decision_rule']['kind']}; temperature {card['calibration']['temperature']:.3f}\n"
        f"- Made {card['created']} in {card['training']['minutes']} minutes; "
        f"best epoch {card['training']['best_epoch']}"
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
    lines += ["", "Images (lesions) by role; no lesion stands in two roles:", ""]
    lines += ["| class | train | select | calibrate | test |", "|---|---|---|---|---|"]
    for code, roles in data["roles"].items():
        cells = (roles.get(r, (0, 0)) for r in ("train", "select", "calibrate", "test"))
        lines.append(f"| {code} | " + " | ".join(f"{n} ({g})" for n, g in cells) + " |")
    shortcut = card.get("source_alone")
    if shortcut:
        lines += ["", shortcut["sentence"]]
    return "\n".join(lines)


def _metrics(card: Mapping[str, Any]) -> str:
    metrics = card["metrics"]
    lines = [
        "## Results on the test role",
        "",
        f"{metrics['n']} images of {metrics['n_lesions']} lesions that had no part in training, selection or "
        "calibration. 95 % intervals from a bootstrap over lesions; "
        "below some 20 lesions in a class they are too narrow.",
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


def _probe(card: Mapping[str, Any]) -> str:
    probe = card["probe"]
    return (
        "## Against the linear probe\n\n"
        "A logistic regression on frozen ImageNet features, same images, same roles:\n\n"
        "| | linear probe | this model |\n|---|---|---|\n"
        + "".join(
            f"| {name.replace('_', ' ')} | {figure(probe[name])} | {figure(card['metrics'][name])} |\n"
            for name in ("balanced_accuracy", "accuracy", "macro_auc")
        )
        + "\nDifference in balanced accuracy, paired over lesions: "
        f"{figure(probe['model_minus_probe_balanced_accuracy'])}."
    )


def _limits(card: Mapping[str, Any]) -> str:
    lines = ["## Not tested on", ""]
    lines += [f"- {line}" for line in card["data"]["not_tested_on"]] or ["- anything but the test role above"]
    return "\n".join(lines)


def _licence(card: Mapping[str, Any]) -> str:
    return f"## Licence\n\nWeights: {card['licence']['weights']}. Code: {card['licence']['code']}."
