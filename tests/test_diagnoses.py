"""The vocabulary: synonyms, ICD codes, and the way to the eight classes of ISIC 2019."""

from __future__ import annotations

import re

import pytest

from dermlens.diagnoses import DIAGNOSES, EIGHT, ISIC2019, display_name, normalise, to_eight, to_isic2019


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ACK", "AK"),
        ("actinic keratosis", "AK"),
        ("actinic_keratosis", "AK"),
        ("Actinic  Keratosis ", "AK"),
        ("NEV", "NV"),
        ("nevus", "NV"),
        ("melanocytic nevus", "NV"),
        ("melanocytic-Nevi", "NV"),
        ("nv", "NV"),
        ("mel", "MEL"),
        ("Melanoma", "MEL"),
        ("bkl", "BKL"),
        ("benign keratosis-like lesions", "BKL"),
        ("pigmented benign keratosis", "PBK"),
        ("SEK", "SK"),
        ("seborrheic keratosis", "SK"),
        ("Seborrhoeic Keratosis", "SK"),
        ("BOD", "BOD"),
        ("Bowen's disease", "BOD"),
        ("Bowen\N{RIGHT SINGLE QUOTATION MARK}s disease", "BOD"),
        ("akiec", "AKIEC"),
        ("vasc", "VASC"),
        ("vascular lesion", "VASC"),
        ("df", "DF"),
        ("basal cell carcinoma", "BCC"),
        ("squamous cell carcinoma", "SCC"),
        ("solar lentigo", "SL"),
        ("lichenoid keratosis", "LPLK"),
    ],
)
def test_synonyms_become_one_code(name: str, code: str) -> None:
    assert normalise(name) == code


@pytest.mark.parametrize("name", ["psoriasis", "Cherry Angioma", "unknown", "黑色素瘤", "mel 黑"])
def test_unknown_names_stay_as_they_are(name: str) -> None:
    assert normalise(f" {name} ") == name
    assert display_name(name) == name
    assert to_isic2019(name) is None


def test_codes_and_names_are_their_own_synonyms() -> None:
    for code, diagnosis in DIAGNOSES.items():
        assert normalise(code) == normalise(code.lower()) == normalise(diagnosis.name) == code == diagnosis.code
        assert display_name(code) == diagnosis.name


def test_isic2019_classes() -> None:
    assert ISIC2019 == ("AK", "BCC", "BKL", "DF", "MEL", "NV", "SCC", "VASC")
    assert [to_isic2019(code) for code in ISIC2019] == list(ISIC2019)
    assert {to_isic2019(code) for code in ("SK", "PBK", "SL", "LPLK")} == {"BKL"}
    assert to_isic2019("BOD") == "SCC"
    assert to_isic2019("AKIEC") is None


ISIC_2018 = {"MEL": "MEL", "NV": "NV", "BCC": "BCC", "AKIEC": "AKIEC", "BKL": "BKL", "DF": "DF", "VASC": "VASC"}
ISIC_2019 = {**ISIC_2018, "AK": "AKIEC", "SCC": None}
ISIC_9 = {
    "actinic keratosis": "AKIEC",
    "basal cell carcinoma": "BCC",
    "dermatofibroma": "DF",
    "melanoma": "MEL",
    "nevus": "NV",
    "pigmented benign keratosis": "BKL",
    "seborrheic keratosis": "BKL",
    "squamous cell carcinoma": None,
    "vascular lesion": "VASC",
}
MILK10K = {**ISIC_2018, "SCCKA": "SCCKA", "INF": None, "BEN_OTH": None, "MAL_OTH": None}
PAD_UFES_20 = {"ACK": "AKIEC", "BCC": "BCC", "MEL": "MEL", "NEV": "NV", "SCC": None, "SEK": "BKL", "BOD": "AKIEC"}
NAMES = {
    "Squamous cell carcinoma in situ, Bowens disease": "AKIEC",
    "Solar or actinic keratosis": "AKIEC",
    "Squamous cell carcinoma, Invasive": "SCCKA",
    "Keratoacanthoma": "SCCKA",
    "Seborrheic keratosis": "BKL",
    "Lichen planus like keratosis": "BKL",
    "psoriasis": None,
}


@pytest.mark.parametrize("labels", [ISIC_2018, ISIC_2019, ISIC_9, MILK10K, PAD_UFES_20, NAMES])
def test_labels_of_known_collections_have_one_of_eight_classes_or_none(labels: dict[str, str | None]) -> None:
    assert {name: to_eight(name) for name in labels} == labels


def test_the_eight_classes_are_their_own() -> None:
    assert EIGHT == ("AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "SCCKA", "VASC")
    assert [to_eight(code) for code in EIGHT] == list(EIGHT)
    assert set(EIGHT) <= set(DIAGNOSES)


def test_facts_are_complete_and_well_formed() -> None:
    for diagnosis in DIAGNOSES.values():
        assert re.fullmatch(r"[A-Z]\d\d(\.\d)?", diagnosis.icd10)
        assert re.fullmatch(r"|[0-9A-Z]{4}(\.[0-9A-Z]{1,2})?", diagnosis.icd11)
        assert diagnosis.plain.endswith(".")
    malignant = {code for code, d in DIAGNOSES.items() if d.malignancy == "malignant"}
    assert malignant == {"BCC", "MEL", "SCC", "BOD", "SCCKA", "ISCC", "KA", "MAL_OTH"}
