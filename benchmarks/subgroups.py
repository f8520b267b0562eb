"""Does the embedded model serve everyone alike? Every group of its test lesions, scored on its own.

    DERMLENS_DATA=/path/to/data python benchmarks/subgroups.py [--out DIR] [--page docs/trust.md] [--seed 0]

The same as the table of `dermlens evaluate`, on the test role of both sources. Writes subgroups.json and subgroups.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from embedded import embedded_roles
from folds import write
from rich.console import Console

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
from dermlens.text import figure

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC, malignant",
    "referral_sensitivity": "of those, referred",
    "referral_specificity": "others left alone",
    "coverage": "coverage",
    "ok": "`ok`",
    "accuracy_ok": "accuracy on `ok`",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/subgroups"))
    parser.add_argument("--page", type=Path, help="write the table there, too, between its marks")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    predictor = Predictor("default")
    bundle = predictor.bundle
    test = embedded_roles(bundle, Console(stderr=True, width=120))["test"]

    def tone(record: Record) -> float:
        return typology_angle(load_image(record.path, bundle.input_spec, frame_aspect=record.frame_aspect))

    answers = list(
        predictor.predict_many([r.path for r in test.records], frame_aspects=[r.frame_aspect for r in test.records])
    )
    readable = [row for row, answer in enumerate(answers) if answer.error is None]
    records = [test.records[row] for row in readable]
    scored = answers_of(
        bundle, [answers[row] for row in readable], [r.diagnosis for r in records], test.lesions[readable]
    )
    table = subgroups([groups_of(r, tone(r)) for r in records], scored, seed=options.seed)
    report = {
        "model": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "seed": options.seed,
        "images": len(records),
        "skin_tone": skin_tone_sentence(table),
        "subgroups": table,
    }
    write(options, "subgroups", report, lines(report), None)


def lines(report: dict) -> list[str]:
    """Return the table of the figures, and who is too few to be in it."""
    rows = [f"| group | images (lesions) | {' | '.join(COLUMNS.values())} |", "|---" * (2 + len(COLUMNS)) + "|"]
    small = []
    for axis, groups in report["subgroups"].items():
        for name, row in groups.items():
            if row["n_lesions"] < MIN_LESIONS:
                small.append(f"{axis} {name} ({row['n_lesions']})")
                continue
            cells = " | ".join(figure(row[key], 2) for key in COLUMNS)
            rows.append(f"| {axis}: {name} | {row['n']} ({row['n_lesions']}) | {cells} |")
    rows += ["", f"Below {MIN_LESIONS} lesions, so not scored: {', '.join(small)}.", "", report["skin_tone"]]
    return rows


if __name__ == "__main__":
    main()
