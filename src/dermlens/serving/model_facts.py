"""What `/api/v1/model` says: the model, its classes in plain words, how good it is, and what a client may send."""

from __future__ import annotations

from typing import Any

from dermlens import __version__
from dermlens.diagnoses import DIAGNOSES
from dermlens.inference.bundle import Bundle
from dermlens.inference.predict import DISCLAIMER
from dermlens.serving.settings import Settings

FIGURES = ("accuracy", "balanced_accuracy", "macro_auc", "ece")


def model_facts(bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """Return the model as one JSON object; figures are those of the bundle, with their intervals."""
    card = bundle.card
    metrics = card.get("metrics") or {}
    trust = card.get("trust") or {}
    model_card = bundle.folder / "MODEL_CARD.md"
    return {
        "name": bundle.name,
        "version": bundle.version,
        "sha256": bundle.sha256,
        "software": f"dermlens {__version__}",
        "disclaimer": DISCLAIMER,
        "scope": bundle.scope,
        "modality": card.get("modality"),
        "classes": [_class(code, name) for code, name in zip(bundle.codes, bundle.names, strict=True)],
        "decision_rule": bundle.decision_rule.as_dict(),
        "calibrated": bundle.calibrated,
        "leaky": bundle.leaky,
        "input": {"size_px": bundle.input_spec.size_px, "framing": bundle.input_spec.framing},
        "tested_on": {"images": metrics.get("n"), "lesions": metrics.get("n_lesions")},
        "metrics": {name: metrics[name] for name in FIGURES if name in metrics},
        "operating_points": list(trust.get("operating_points") or []),
        "prediction_set_level": (trust.get("prediction_sets") or {}).get("level"),
        "not_tested_on": list(card.get("data", {}).get("not_tested_on", [])),
        "licence": card.get("licence"),
        "limits": settings.limits(),
        "card": model_card.read_text(encoding="utf-8") if model_card.is_file() else "",
    }


def _class(code: str, name: str) -> dict[str, Any]:
    known = DIAGNOSES.get(code)
    if known is None:
        return {"code": code, "name": name, "malignancy": "unknown", "icd10": "", "icd11": "", "plain": ""}
    return {
        "code": code,
        "name": name,
        "malignancy": known.malignancy,
        "icd10": known.icd10,
        "icd11": known.icd11,
        "plain": known.plain,
    }
