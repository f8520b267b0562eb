"""What the benchmarks of the embedded model share: its images, by the role that they had in its training."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dermlens.bundle.bundle import Bundle
from dermlens.evaluation.fit_trust import Labelled
from dermlens.evaluation.metrics import log_loss
from dermlens.evaluation.scores import score

sys.path.append(str(Path(__file__).resolve().parents[1]))  # scripts/ is there

from scripts.default_model.dataset import default_dataset
from scripts.default_model.facts import roles_of


def embedded_roles(bundle: Bundle, console: Console, data: Path | None = None) -> dict[str, Labelled]:
    """Return role -> images, read from `data` or the folder that DERMLENS_DATA names."""
    folder = data or os.environ.get("DERMLENS_DATA")
    if not folder:
        raise SystemExit("Not run: it needs DERMLENS_DATA, the folder with ham10000/, isic9/ and isic_reference.csv.")
    return roles_of(bundle, default_dataset(Path(folder), console), console)


def network_figures(test: Labelled, shares: np.ndarray, decision: np.ndarray, codes: list[str]) -> dict[str, Any]:
    """Score what a network says of the test role; `decision` (n,) is for pairs and left out of a report."""
    scored = score(test.y_true, shares, decision, test.lesions.tolist(), codes)
    keys = ("auc", "sensitivity", "sensitivity_at_90_specificity")
    return {
        **{key: scored[key] for key in ("balanced_accuracy", "accuracy", "macro_auc", "ece")},
        "melanoma": {key: scored["per_class"]["MEL"][key] for key in keys},
        "log_loss": log_loss(test.y_true, shares),
        "decision": decision,
    }


def network_cells(name: str, row: Mapping[str, Any], gain: str) -> list[Any]:
    """Return the first cells of a network's row: name, balanced accuracy, gain, accuracy, AUC, melanoma's two."""
    melanoma = (row["melanoma"][key] for key in ("auc", "sensitivity"))
    return [name, row["balanced_accuracy"], row.get(gain, ""), row["accuracy"], row["macro_auc"], *melanoma]
