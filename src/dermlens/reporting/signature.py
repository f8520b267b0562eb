"""What to know before trusting a model that somebody else made, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dermlens.inference.predict import DISCLAIMER
from dermlens.reporting.figures import figure
from dermlens.reporting.plain import one_line


def signature_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the facts of `packing.signature` in words; what the card says cannot make a line of its own."""
    tested = facts["tested_on"]
    on = "" if not tested["images"] else f" on {tested['images']} images of {tested['lesions']} lesions"
    score = "not stated" if not facts["balanced_accuracy"] else figure(facts["balanced_accuracy"]) + on
    melanoma = f"; melanoma AUC {figure(facts['melanoma_auc'])}" if facts["melanoma_auc"] else ""
    lines = {
        "reads": facts["scope"],
        "classes": ", ".join(facts["classes"]),
        "trained on": ", ".join(facts["trained_on"]) or f"{facts['images'] or 'images'} images of unnamed source",
        "balanced accuracy": score + melanoma + " (as its maker measured it)",
        "licence": _licence(facts["licence"]),
        "SHA-256": facts["sha256"],
        "known": facts["known"] or "NO: compare the SHA-256 with what its maker published, by another way",
    }
    width = max(map(len, lines))
    warnings = [
        *(["LEAKY: training and test shared images or lesions; its figures are too good."] * facts["leaky"]),
        *(["Its probabilities are NOT calibrated."] * (not facts["calibrated"])),
        *(["It does not know its limits: it answers for any picture."] * (not facts["knows_its_limits"])),
    ]
    told = [f"  {name:{width}}  {one_line(value)}" for name, value in lines.items()]
    title = one_line(f"{facts['name']} {facts['version']}")
    return [title, *told, *(f"  {line}" for line in [*warnings, DISCLAIMER])]


def _licence(licence: Mapping[str, Any]) -> str:
    return f"weights {licence.get('weights') or 'not stated'}; code {licence.get('code') or 'not stated'}"
