"""Which epoch of a training is the best: for the training that keeps it, and the plot that marks it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

KEPT_BY = "macro AUC, then loss"  # part of the key of a run and of a search: one begun by another rule does not go on


def merit(row: Mapping[str, float]) -> tuple[float, float]:
    """Return what the epochs of a training are ranked by, high is good: the macro AUC on select, then the lower loss.

    The AUC weighs all classes alike, as balanced accuracy does, and takes every image's probability instead of its
    decision: with seven lesions of a class, one of them more or less moves balanced accuracy by points.
    """
    auc = row["select_macro_auc"]
    return (-1.0 if math.isnan(auc) else auc, -row["select_loss"])


def kept_epoch(rows: Sequence[Mapping[str, float]]) -> int:
    """Return the place of the best row, the first of equals."""
    return max(range(len(rows)), key=lambda place: merit(rows[place]))
