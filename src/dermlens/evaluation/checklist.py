"""What a reader should know about a model for skin images, and where the report says it: "missing" where it does not.

The items follow CLEAR Derm (Daneshjou et al. 2022, doi 10.1001/jamadermatol.2021.4915) and, after them, what a model
card asks beyond it (Mitchell et al. 2019, doi 10.1145/3287560.3287596), in our words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISSING = "missing"
ENOUGH_KNOWN = 0.9  # with lesion ids for fewer of the model's images, its roles do not count as separate


def checklist(card: Mapping[str, Any], report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (item, where, answer): `where` is a section's key, or "missing"; the answer then says what is missing.

    Args:
        card: bundle.json; report: the evaluation, as written to metrics.json.
    """
    data, recipe = card["data"], card["recipe"]
    groups = report.get("subgroups", {})
    novelty = card["trust"]["novelty"]
    histology = _share(groups.get("diagnosed by", {}), ("histo", "histopathology"))
    tone = "not recorded; estimated from the image (individual typology angle)"
    if "skin type (Fitzpatrick)" in groups:
        tone = "recorded Fitzpatrick types"
    framing, size, interpolation = (card["input"][name] for name in ("framing", "size_px", "interpolation"))
    counts, compared = report["counts"], report["baselines"]["available"]
    apart = not counts["set_aside_as_seen"] and not counts["of_the_models_own_test"]
    return [
        ("Kind of image", "model", card["modality"]),
        ("Artefacts in the images", *_found(report.get("controls"), "controls", "run with --controls")),
        ("How the images were taken", *_found(None, "", "devices are not recorded in the data")),
        ("Preparation of the images", "model", f"{framing}, {size} px, {interpolation}"),
        ("Synthetic images", "model", "none; augmentation only"),
        ("Sources of public images", *_found(data["sources"], "data", "not recorded")),
        ("Facts about patients", *_found(groups, "subgroups", "age, sex and site are not recorded")),
        ("Skin tone, and how it was found", "subgroups", tone),
        ("Bias from facts about patients", "subgroups", "the network gets only pixels"),
        ("Separation of training and test", *_separation(data)),
        ("Sizes of the parts", *_found(data["roles"], "data", "not recorded")),
        ("Test from elsewhere", *_found(apart or None, "data", "these images are from the data set of the model")),
        ("Several devices", *_found(groups.get("source"), "subgroups", "sources are not recorded")),
        ("How often each class occurs", "results", "table by class"),
        ("Images that are no such lesions", *_found(novelty, "novelty", "no novelty score in this bundle")),
        ("Who gave the labels", *_found(groups.get("diagnosed by"), "subgroups", "not recorded in this data set")),
        ("Accepted names of diagnoses", "results", "ISIC 2019 codes with ICD-10 and ICD-11"),
        ("Histology behind malignant labels", *_found(histology, "subgroups", "not recorded in this data set")),
        ("How the model was made", "model", f"{recipe['backbone']}, recipe in bundle.json"),
        ("How others can test it", "model", "the bundle and dermlens evaluate; code under Apache-2.0"),
        ("Measures with intervals", "results", "95 % intervals over lesions"),
        ("Comparison with a simpler model", *_found(compared, "baselines", "no linear probe for these images")),
        ("Bias by group", *_found(groups, "subgroups", "no groups are recorded")),
        ("Use and limits", "model", card["scope"]),
        ("When it does not answer", "status", "see there"),
        ("Effect on care", *_found(None, "", "not studied: research and decision support only")),
        *_model_card(card, report),
    ]


def _model_card(card: Mapping[str, Any], report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The fields of a model card that CLEAR Derm does not ask for."""
    dated = f"version {card['version']}, made {card['created']}"
    limits, fitted = card["data"]["not_tested_on"], card["calibration_fit"]["fitted"]
    points = report["operating_points"]
    return [
        ("Version, date and licence", "model", f"{dated}; {card['licence']['weights']}"),
        ("Who it is for", "model", "research and decision support by people who know skin; not for self-diagnosis"),
        ("Uses out of scope", *_found(limits, "model", "not recorded in this bundle")),
        ("Thresholds of decisions", *_found(points, "referral", "no operating points in this bundle")),
        ("How reliable the probabilities are", *_found(fitted, "calibration", "the probabilities are not calibrated")),
        ("Groups that belong to two", MISSING, "each fact about patients is evaluated on its own"),
        ("Consent and privacy", MISSING, "the terms of the data's sources are not checked"),
        ("Whom to tell of errors", MISSING, "the person who shares this model"),
    ]


def _found(value: Any, where: str, otherwise: str) -> tuple[str, str]:
    if not value:
        return MISSING, otherwise
    return where, value if isinstance(value, str) else "see there"


def _separation(data: Mapping[str, Any]) -> tuple[str, str]:
    """No lesion is in two roles, as far as lesions are known; where few are, this is unknown."""
    if data["leaky"]:
        return "data", "LEAKY"
    known = data["lesions_known"]
    if known >= 1:
        return "data", "no lesion is in two roles"
    if known < ENOUGH_KNOWN:
        return MISSING, f"the lesion is known for only {known * 100:.0f} % of the training images"
    return "data", f"no known lesion is in two roles; the lesion is known for {known * 100:.0f} % of the images"


def _share(groups: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    total = sum(row["n"] for row in groups.values())
    known = sum(row["n"] for name, row in groups.items() if name in names)
    return f"{known} of {total} images diagnosed by histology" if total else None
