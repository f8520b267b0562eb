"""Does the embedded model serve everyone alike? Every group of its test lesions, scored on its own.

The same as the table of `dermlens evaluate`, on the test role of both sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import cell, markdown, model_of
from benchmarks.roles import embedded_roles
from dermlens import Predictor
from dermlens.data.images import load_image
from dermlens.data.records import Record
from dermlens.evaluation.subgroups import (
    MIN_LESIONS,
    groups_of,
    skin_tone_sentence,
    subgroups,
    typology_angle,
)
from dermlens.evaluation.trust_sections import answers_of

COLUMNS = {
    "accuracy": "accuracy",
    "referral_sensitivity": "malignant referred",
    "referral_specificity": "others not referred",
    "coverage": "coverage",
}


def run(*, data: Path, seed: int = 0) -> dict[str, Any]:
    """Return the figures of every group."""
    predictor = Predictor("default")
    bundle = predictor.bundle
    test = embedded_roles(bundle, data)["test"]

    def tone(record: Record) -> float:
        return typology_angle(load_image(record.path, bundle.input_spec, frame_aspect=record.frame_aspect))

    paths, aspects = ([getattr(r, name) for r in test.records] for name in ("path", "frame_aspect"))
    answers = list(predictor.predict_many(paths, frame_aspects=aspects))
    readable = [row for row, answer in enumerate(answers) if answer.error is None]
    records = [test.records[row] for row in readable]
    scored = answers_of(
        bundle, [answers[row] for row in readable], [r.diagnosis for r in records], test.lesions[readable]
    )
    groups = subgroups([groups_of(r, tone(r)) for r in records], scored, seed=seed)
    return {
        "model": model_of(bundle),
        "seed": seed,
        "images": len(records),
        "skin_tone": skin_tone_sentence(groups),
        "subgroups": groups,
    }


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each group, and which groups are too small to be scored."""
    rows, small = [], []
    for axis, groups in found["subgroups"].items():
        for name, row in groups.items():
            if row["n_lesions"] < MIN_LESIONS:
                small.append(f"{axis} {name} ({row['n_lesions']})")
                continue
            rows.append([f"{axis}: {name}", row["n_lesions"], *(cell(row[key], 2) for key in COLUMNS)])
    few = f"Below {MIN_LESIONS} lesions, so not scored: {', '.join(small)}."
    return f"{markdown(['group', 'lesions', *COLUMNS.values()], rows)}\n\n{few} {found['skin_tone']}"
