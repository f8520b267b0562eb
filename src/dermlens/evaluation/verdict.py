"""The verdict of an evaluation in plain words: what the model is good for, what not, and what nobody knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dermlens.diagnoses import display_name

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
    if status:
        sure, every = status["ok"]["accuracy"], status["all"]["accuracy"]
        lines.append(
            f"It answers without reserve in {status['ok']['share']['value']:.0%} of these images, and is right in "
            f"{_percent(sure)} of them, against {_percent(every)} of all."
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
