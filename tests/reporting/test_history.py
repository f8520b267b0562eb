"""The epoch that is kept: by the AUC, then by the loss, the first of equals."""

from __future__ import annotations

import math

import pytest

from dermlens.reporting.plots import kept_epoch


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([(0.6, 0.1), (0.9, 0.5), (0.8, 0.2)], 1),
        ([(1.0, 0.3), (1.0, 0.2), (1.0, 0.4)], 1),
        ([(0.9, 0.2), (0.9, 0.2)], 0),
        ([(math.nan, 0.1), (0.2, 0.9)], 1),
        ([(math.nan, 0.3), (math.nan, 0.1)], 1),
    ],
)
def test_the_best_epoch(scores: list[tuple[float, float]], kept: int) -> None:
    assert kept_epoch([{"select_macro_auc": auc, "select_loss": loss} for auc, loss in scores]) == kept
