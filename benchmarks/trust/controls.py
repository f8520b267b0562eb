"""What artefacts and hidden lesions do to the embedded model, on its test lesions.

The same as `dermlens evaluate --controls`, on the test role of both sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import CONSOLE
from benchmarks.report import markdown, model_of
from benchmarks.roles import embedded_bundle, embedded_roles
from dermlens.data.images import Pixels, load_image
from dermlens.evaluation.controls import MOST_IMAGES, run_controls
from dermlens.text import figure


def run(*, data: Path, images: int = MOST_IMAGES, seed: int = 0) -> dict[str, Any]:
    """Return by artefact how many diagnoses change, and what is left when the lesion is hidden."""
    bundle = embedded_bundle()
    test = embedded_roles(bundle, data)["test"]

    def load(row: int) -> Pixels:
        record = test.records[row]
        return load_image(record.path, bundle.input_spec, frame_aspect=record.frame_aspect)

    found = run_controls(bundle, load, test.y_true, test.lesions, seed=seed, console=CONSOLE, most=images)
    return {"model": model_of(bundle), **found}


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each artefact, and what hidden lesions leave."""
    rows = [
        [name, row["flip_rate"], row["watched_change"], row["accuracy_change"]]
        for name, row in found["artefacts"].items()
    ]
    header = ["artefact", "diagnoses that change", "change of P(melanoma)", "change of accuracy"]
    hidden = ", ".join(
        f"{name} {figure(row['balanced_accuracy'])} (chance {row['chance']:.3f})"
        for name, row in found["without_lesion"].items()
    )
    return f"{markdown(header, rows)}\n\nBalanced accuracy: {hidden}."
