"""The vocabulary: what each diagnosis is called, its ICD codes, and whether it is malignant.

A data set may use any names: known synonyms become one code (`normalise`), unknown names stay as they are, so any
skin-disease data set can be trained on. Only true synonyms are joined: "cherry angioma" is no synonym of the
umbrella "vascular lesion", since a data set may hold both as classes of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    pass


Malignancy = Literal["malignant", "premalignant", "benign", "unknown"]


@dataclass(frozen=True)
class Diagnosis:
    """One diagnosis in the words of a data set, a clinic and a patient.

    Attributes:
        code: short upper-case code, as in ISIC 2019 where that has one.
        name: lower-case English name.
        icd10: WHO ICD-10 code, without site; for an umbrella term the code of its category.
        icd11: WHO ICD-11 (MMS) code, likewise; empty where no single code fits.
        malignancy: "malignant" includes carcinoma in situ; an umbrella takes the least grave of its members.
        plain: one sentence for a person without medical training.
    """

    code: str
    name: str
    icd10: str
    icd11: str
    malignancy: Malignancy
    plain: str


_ROWS: tuple[tuple[str, str, str, str, Malignancy, str], ...] = (
    (
        "AK",
        "actinic keratosis",
        "L57.0",
        "EK90.0",
        "premalignant",
        "A rough, scaly patch caused by years of sun; a few turn into skin cancer, so they are treated or watched.",
    ),
    (
        "BCC",
        "basal cell carcinoma",
        "C44.9",
        "2C32",
        "malignant",
        "The most common skin cancer; it grows slowly and rarely spreads, but has to be treated.",
    ),
    (
        "BKL",
        "benign keratosis",
        "L82",
        "2F21",
        "benign",
        "A harmless growth of the skin: seborrheic keratosis, solar lentigo (sun spot) or lichenoid keratosis.",
    ),
    (
        "DF",
        "dermatofibroma",
        "D23.9",
        "2F23.0",
        "benign",
        "A harmless firm knot of fibrous tissue in the skin, often on the legs.",
    ),
    (
        "MEL",
        "melanoma",
        "C43.9",
        "2C30",
        "malignant",
        "A dangerous skin cancer of the pigment cells; found early it can be cured.",
    ),
    ("NV", "melanocytic nevus", "D22.9", "2F20", "benign", "A mole: a harmless group of pigment cells."),
    (
        "SCC",
        "squamous cell carcinoma",
        "C44.9",
        "2C31",
        "malignant",
        "A skin cancer of the upper skin that can spread when it is left untreated.",
    ),
    (
        "VASC",
        "vascular lesion",
        "D18.0",
        "2E81",
        "benign",
        "A harmless change of small blood vessels, such as an angioma or a bleeding into the skin.",
    ),
    (
        "AKIEC",
        "actinic keratosis or squamous cell carcinoma in situ",
        "L57.0",
        "EK90.0",
        "premalignant",
        "A sun-damaged patch, or a very early skin cancer that has not grown below the upper skin.",
    ),
    (
        "BOD",
        "Bowen's disease (squamous cell carcinoma in situ)",
        "D04.9",
        "2E64.0",
        "malignant",
        "A very early skin cancer that has not grown below the upper skin.",
    ),
    (
        "SK",
        "seborrheic keratosis",
        "L82",
        "2F21.0",
        "benign",
        "A harmless, often warty growth that comes with age.",
    ),
    (
        "PBK",
        "pigmented benign keratosis",
        "L82",
        "2F21",
        "benign",
        "A harmless, darkly coloured growth of the upper skin.",
    ),
    ("SL", "solar lentigo", "L81.4", "", "benign", "A harmless flat brown spot caused by the sun."),
    (
        "LPLK",
        "lichen-planus-like keratosis",
        "L82",
        "2F21",
        "benign",
        "A harmless patch, often a fading sun spot.",
    ),
)

DIAGNOSES: dict[str, Diagnosis] = {row[0]: Diagnosis(*row) for row in _ROWS}
"""All known diagnoses by code."""

ISIC2019 = ("AK", "BCC", "BKL", "DF", "MEL", "NV", "SCC", "VASC")
"""The eight classes of the ISIC 2019 challenge, in the order used everywhere."""

_SYNONYMS: dict[str, tuple[str, ...]] = {
    "AK": ("ACK", "actinic keratoses", "solar keratosis", "solar keratoses"),
    "BCC": ("basal cell carcinomas", "basalioma", "basal cell cancer", "cutaneous basal cell carcinoma"),
    "BKL": (
        "benign keratoses",
        "benign keratosis like lesion",
        "benign keratosis like lesions",
        "benign lesions of the keratosis",
    ),
    "DF": ("dermatofibromas", "dermatofibromata", "fibrous histiocytoma", "benign fibrous histiocytoma"),
    "MEL": (
        "melanomas",
        "malignant melanoma",
        "malignant melanomas",
        "cutaneous melanoma",
        "melanoma of skin",
    ),
    "NV": (
        "NEV",
        "nevus",
        "nevi",
        "naevus",
        "naevi",
        "mole",
        "moles",
        "melanocytic nevi",
        "melanocytic naevus",
        "melanocytic naevi",
    ),
    "SCC": ("cSCC", "squamous cell carcinomas", "squamous cell cancer", "cutaneous squamous cell carcinoma"),
    "VASC": ("vascular lesions", "vascular skin lesion", "vascular skin lesions"),
    "AKIEC": (
        "actinic keratoses and intraepithelial carcinoma",
        "actinic keratoses and intraepithelial carcinomae",
        "actinic keratosis and intraepithelial carcinoma",
        "actinic keratoses and intraepithelial carcinoma / Bowen's disease",
        "actinic keratosis / Bowen's disease",
    ),
    "BOD": (
        "bowen",
        "bowens",
        "Bowen's disease",
        "Bowen disease",
        "squamous cell carcinoma in situ",
        "SCC in situ",
        "SCCIS",
        "intraepidermal carcinoma",
        "intraepithelial carcinoma",
    ),
    "SK": (
        "SEK",
        "seborrheic keratoses",
        "seborrhoeic keratosis",
        "seborrhoeic keratoses",
        "seborrheic wart",
    ),
    "PBK": ("pigmented benign keratoses",),
    "SL": ("solar lentigines", "actinic lentigo", "senile lentigo"),
    "LPLK": ("lichen planus like keratosis", "lichenoid keratosis", "benign lichenoid keratosis"),
}

_TO_ISIC2019 = {
    **{code: code for code in ISIC2019},
    **dict.fromkeys(("SK", "PBK", "SL", "LPLK"), "BKL"),
    "BOD": "SCC",
}


def _key(name: str) -> str:
    """Letters and digits only, lower case: "Actinic_Keratosis" and "actinic keratosis" are one."""
    return re.sub(r"[\W_]+", "", name.casefold())


_CODE_BY_KEY: dict[str, str] = {
    _key(name): code
    for code, diagnosis in DIAGNOSES.items()
    for name in (code, diagnosis.name, *_SYNONYMS.get(code, ()))
}


def normalise(name: str) -> str:
    """Return the code of a known name or synonym, in any case and with any spacing; other names come back stripped.

    >>> normalise("Actinic_Keratosis"), normalise("melanocytic nevi"), normalise(" psoriasis ")
    ('AK', 'NV', 'psoriasis')
    """
    return _CODE_BY_KEY.get(_key(name), name.strip())


def display_name(code: str) -> str:
    """Return the name for a known code, else the code itself."""
    diagnosis = DIAGNOSES.get(code)
    return diagnosis.name if diagnosis else code


def to_isic2019(code: str) -> str | None:
    """Return the ISIC 2019 class that a code belongs to, or None where it has none or more than one.

    SK, PBK, SL and LPLK are benign keratoses (BKL). BOD is SCC, as ISIC 2019 files squamous cell carcinoma in situ.
    AKIEC may be AK or SCC: only a reference table can tell, so it gives None.
    """
    return _TO_ISIC2019.get(code)


DISCLAIMER = "For research and decision support only; not a diagnosis."
