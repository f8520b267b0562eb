"""What the embedded model advises for lesions of other collections, and for pictures of no lesion.

Lesions: MILK10k (both pictures), PAD-UFES-20, MSK and BCN_20000; those that the model has learned from are left out.
No lesions: the pictures that come with scikit-image, scikit-learn and Matplotlib, whole, each counted once. The rule
for "no lesion" (`bundle.trust`) was chosen on these lesions and on other everyday pictures.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import markdown, model_of
from benchmarks.trust.novelty import BUNDLED
from dermlens import Predictor
from dermlens.inference.judge import ADVICE
from dermlens.inference.prediction import Prediction
from dermlens.text import figure, wilson_interval

SETS = {  # name: folder, table, column of the label, melanoma there, a column and its value
    "MILK10k, dermoscopic": ("milk10k", "milk10k.csv", "isic2019", "MEL", ("modality", "dermoscopic")),
    "MILK10k, close-ups": ("milk10k", "milk10k.csv", "isic2019", "MEL", ("modality", "clinical")),
    "PAD-UFES-20, by phone": ("pad", "pad.csv", "diagnostic", "MEL", None),
    "MSK": ("msk", "msk.csv", "isic2019", "MEL", None),
    "BCN_20000, 84 px": ("bcn84", "bcn84.csv", "isic2019", "MEL", None),
}


def run(*, data: Path) -> dict[str, Any]:
    """Return for each collection the shares of advice among all pictures and among melanomas."""
    predictor = Predictor("default")
    found = {}
    for name, (folder, table, column, melanoma, only) in SETS.items():
        rows = _unseen(predictor, data / folder, table, only)
        answers = list(predictor.predict_many([data / folder / row["image"] for row in rows]))
        grave = [answer for row, answer in zip(rows, answers, strict=True) if row[column] == melanoma]
        found[name] = {"all": _advice(answers), "melanomas": _advice(grave)}
    pictures = [path for paths in BUNDLED.values() for path in paths]
    found["no lesion"] = {"all": _advice(list(predictor.predict_many(pictures)))}
    return {"model": model_of(predictor.bundle), "sets": found}


def _unseen(
    predictor: Predictor, folder: Path, table: str, only: tuple[str, str] | None
) -> Sequence[Mapping[str, str]]:
    seen = predictor.bundle.seen()
    known: set[str] = set()
    if (folder / "same_lesion.csv").is_file():  # pictures of lesions that HAM10000 has too
        with (folder / "same_lesion.csv").open(newline="") as file:
            known = {row["milk10k"] for row in csv.DictReader(file)}
    with (folder / table).open(newline="") as file:
        rows = list(csv.DictReader(file))
    shared = {row["lesion_id"] for row in rows if row.get("isic_id") in known}
    return [
        row
        for row in rows
        if (only is None or row[only[0]] == only[1])
        and row["lesion_id"] not in shared
        and seen.reason(None, row["lesion_id"] or None, row.get("isic_id") or None) is None
    ]


def _advice(answers: Sequence[Prediction]) -> dict[str, Any]:
    given = ["error" if a.advice is None else a.advice.code for a in answers]
    nothing = sum(a.reasons[0].code == "no_lesion" for a in answers if a.reasons)
    person = sum(a.advised for a in answers)
    return {
        "n": len(answers),
        "advice": {code: given.count(code) for code in ADVICE},
        "sent to a person": _share(person, len(answers)),
        "called no lesion": _share(nothing, len(answers)),
    }


def _share(hits: int, n: int) -> dict[str, float]:
    low, high = wilson_interval(hits / n, n)
    return {"value": hits / n, "low": low, "high": high}


def table(found: Mapping[str, Any]) -> str:
    """Return one row for each collection."""
    rows = []
    for name, row in found["sets"].items():
        grave = row.get("melanomas")
        rows.append(
            [
                f"{name} ({row['all']['n']:,})",
                *(f"{row['all']['advice'][code] / row['all']['n']:.0%}" for code in ADVICE if code != "not_assessed"),
                row["all"]["called no lesion"],
                f"{figure(grave['sent to a person'])}, n = {grave['n']}" if grave else "",
            ]
        )
    header = [
        "pictures",
        "retake",
        "see clinician",
        "refer",
        "no referral",
        "called no lesion",
        "melanomas sent to a person",
    ]
    return markdown(header, rows)
