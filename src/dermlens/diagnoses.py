"""The vocabulary: what each diagnosis is called, its ICD codes, and whether it is malignant.

A data set may use any names: known synonyms become one code (`normalise`), unknown names stay as they are, so any
skin-disease data set can be trained on. Only true synonyms are joined: "cherry angioma" is no synonym of the
umbrella "vascular lesion", since a data set may hold both as classes of their own.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Diagnosis:
    """One diagnosis in the words of a data set, a clinic and a patient.

    Attributes:
        code: short upper-case code, as in ISIC 2019 where that has one.
        name: lower-case English name.
        icd10: WHO ICD-10 code, without site; for an umbrella term the code of its category.
        icd11: WHO ICD-11 (MMS) code, likewise; empty where no single code fits.
        malignancy: "malignant" (carcinoma in situ included), "premalignant", "benign" or "unknown"; an umbrella takes
            the least grave of its members.
        plain: one sentence for a person without medical training.
    """

    code: str
    name: str
    icd10: str
    icd11: str
    malignancy: str
    plain: str


with Path(__file__).with_suffix(".csv").open(newline="", encoding="utf-8") as _file:
    _ROWS = list(csv.DictReader(_file))

_NAMES = [field.name for field in fields(Diagnosis)]
DIAGNOSES = {row["code"]: Diagnosis(*[row[name] for name in _NAMES]) for row in _ROWS}
"""All known diagnoses by code; the table is `diagnoses.csv`."""

ISIC2019 = ("AK", "BCC", "BKL", "DF", "MEL", "NV", "SCC", "VASC")
"""The eight classes of the ISIC 2019 challenge, in the order used everywhere."""

EIGHT = ("AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "SCCKA", "VASC")
"""The eight classes of the embedded model, in the order used everywhere."""

DISCLAIMER = "For research and decision support only; not a diagnosis."
"""Said once wherever a person reads a result."""


def _key(name: str) -> str:
    """Letters and digits only, lower case: "Actinic_Keratosis" and "actinic keratosis" are one."""
    return re.sub(r"[\W_]+", "", name.casefold())


_CODE_BY_KEY = {
    _key(name): row["code"]
    for row in _ROWS
    for name in [row["code"], row["name"], *filter(None, row["synonyms"].split("; "))]
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
    return next((row["isic2019"] or None for row in _ROWS if row["code"] == code), None)


def map_label(diagnosis: str, codes: Sequence[str]) -> str | None:
    """Return the class of the model that a label means, or None; to a model of the ISIC 2019 classes SK is BKL."""
    if diagnosis in codes:
        return diagnosis
    for classes, parent_of in ((ISIC2019, to_isic2019), (EIGHT, to_eight)):
        if set(codes) <= set(classes) and (parent := parent_of(diagnosis)) in codes:
            return parent
    return None


def to_eight(name: str) -> str | None:
    """Return the class out of `EIGHT` that a label of ISIC 2018, ISIC 2019, ISIC-9, MILK10k or PAD-UFES-20 belongs to.

    The table is the column `eight` of `diagnoses.csv`. Actinic keratosis and Bowen's disease are AKIEC, invasive
    squamous cell carcinoma and keratoacanthoma SCCKA. None for SCC, which may be Bowen's disease or invasive in all
    of these but MILK10k, for MILK10k's INF, BEN_OTH and MAL_OTH, and for names that are not known.

    >>> to_eight("ACK"), to_eight("pigmented benign keratosis"), to_eight("SCC"), to_eight("psoriasis")
    ('AKIEC', 'BKL', None, None)
    """
    code = normalise(name)
    return next((row["eight"] or None for row in _ROWS if row["code"] == code), None)
