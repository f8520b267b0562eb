"""What the tests of the evaluation share."""

from __future__ import annotations

import pytest

from dermlens.evaluation import report

PLOTS = ("confusion", "reliability", "reliability_by_class", "benefit", "roc", "precision")


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the page without drawing its plots, for tests that look at something else."""
    monkeypatch.setattr(report, "_plots", lambda *_: dict.fromkeys(PLOTS, b"png"))
