"""What a reader should be told of a model for skin images, and where the report tells it: "missing" where it does not.

The items follow CLEAR Derm (Daneshjou et al. 2022, doi 10.1001/jamadermatol.2021.4915) and, after them, what a model
card asks beyond it (Mitchell et al. 2019, doi 10.1145/3287560.3287596), in our words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dermlens.bundle.card import Card, Data, Input

MISSING = "missing"
ENOUGH_KNOWN = 0.9  # the share of the model's images with a lesion id from which on its roles count as separate


def checklist(card: Card, report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (item, where, answer): `where` is a section's key, or "missing" with the answer saying what is lacking.

    Args:
        card: bundle.json; report: the evaluation, as written to metrics.json.
    """
    data, recipe = card.data, card.recipe
    groups = report.get("subgroups", {})
    novelty = card.trust.novelty
    histology = _share(groups.get("diagnosed by", {}), ("histo", "histopathology"))
    recorded = "skin type (Fitzpatrick)" in groups
    counts, compared = report["counts"], report["baselines"]["available"]
    apart = not counts["set_aside_as_seen"] and not counts["of_the_models_own_test"]
    return [
        ("Kind of image", "model", card.modality),
        ("Artefacts in the images", *_told(report.get("controls"), "controls", "run with --controls")),
        ("How the images were taken", *_told(None, "", "devices are not recorded in the data")),
        ("Preparation of the images", "model", _input(card.input)),
        ("Synthetic images", "model", "none; augmentation only"),
        ("Sources of public images", *_told(data.sources, "data", "not recorded")),
        ("Facts about patients", *_told(groups, "subgroups", "neither age, sex nor site is recorded")),
        ("Skin tone, and how it was found", *_tone(recorded)),
        ("Bias from facts about patients", "subgroups", "the network gets pixels only"),
        ("Separation of training and test", *_separation(data)),
        ("Sizes of the parts", *_told(data.roles, "data", "not recorded")),
        (
            "Test from elsewhere",
            *_told(apart or None, "data", "these images are of the data set that the model was made from"),
        ),
        ("Several devices", *_told(groups.get("source"), "subgroups", "sources are not told apart")),
        ("How often each class occurs", "results", "table by class"),
        ("Images from outside", *_told(novelty, "novelty", "no novelty score in this bundle")),
        ("Who gave the labels", *_told(groups.get("diagnosed by"), "subgroups", "not recorded in this data set")),
        ("Accepted names of diagnoses", "results", "ISIC 2019 codes with ICD-10 and ICD-11"),
        ("Histology behind malignant labels", *_told(histology, "subgroups", "not recorded in this data set")),
        ("How the model was made", "model", f"{recipe['backbone']}, recipe in bundle.json"),
        ("How others can test it", "model", "the bundle and dermlens evaluate; code under Apache-2.0"),
        ("Measures with intervals", "results", "95 % intervals over lesions"),
        ("Comparison with a simpler model", *_told(compared, "baselines", "no linear probe for these images")),
        ("Bias by group", *_told(groups, "subgroups", "no groups are recorded")),
        ("Use and limits", "model", card.scope),
        ("When it does not answer", "status", "see there"),
        ("Effect on care", *_told(None, "", "not studied: research and decision support only")),
        *_model_card(card, report),
    ]


def _model_card(card: Card, report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The fields of a model card that CLEAR Derm does not ask for."""
    dated = f"version {card.version}, made {card.created}"
    limits = card.data.not_tested_on
    return [
        ("Version, date and licence", "model", f"{dated}; {card.licence.weights}"),
        ("Who it is for", "model", "research and decision support by people who know skin; not for self-diagnosis"),
        ("Uses out of scope", *_told(limits, "model", "not recorded in this bundle")),
        (
            "Thresholds of decisions",
            *_told(report.get("operating_points"), "referral", "no operating points in this bundle"),
        ),
        (
            "How sure the probabilities are",
            *_told(card.calibration_fit.fitted, "calibration", "the probabilities are not calibrated"),
        ),
        ("Groups that belong to two", MISSING, "each fact about patients is looked at by itself"),
        ("Consent and privacy", MISSING, "the terms of the data's sources are not looked into"),
        ("Whom to tell of errors", MISSING, "whoever passes this model on"),
    ]


def _told(found: Any, where: str, lacking: str) -> tuple[str, str]:
    if not found:
        return MISSING, lacking
    return where, found if isinstance(found, str) else "see there"


def _separation(data: Data) -> tuple[str, str]:
    """No lesion stands in two roles, as far as lesions are known; where few are, nobody can tell."""
    if data.leaky:
        return "data", "LEAKY"
    known = data.lesions_known
    if known >= 1:
        return "data", "no lesion in two roles"
    if known < ENOUGH_KNOWN:
        return MISSING, f"the lesion is known for {known:.0%} of the training data's images only"
    return "data", f"no known lesion in two roles; the lesion is known for {known:.0%} of the images"


def _tone(recorded: bool) -> tuple[str, str]:
    if recorded:
        return "subgroups", "recorded Fitzpatrick types"
    return "subgroups", "not recorded; estimated from the picture (individual typology angle)"


def _input(spec: Input) -> str:
    return f"{spec.framing}, {spec.size_px} px, {spec.interpolation}"


def _share(groups: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    total = sum(row["n"] for row in groups.values())
    known = sum(row["n"] for name, row in groups.items() if name in names)
    return f"{known} of {total} images diagnosed by histology" if total else None
