"""The speed suite: a fallen ratio is told, and what is committed can be compared with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compare

    yield compare
    sys.modules.pop("compare")


def test_only_a_ratio_that_has_fallen_further_than_allowed_is_told(compare: object) -> None:
    before = {"a": {"median": 10.0}, "b": {"median": 4.0}, "gone": {"median": 1.0}}
    now = {"a": {"median": 7.6}, "b": {"median": 2.9}, "new": {"median": 0.1}}

    found = compare.fallen(before, now, 0.25)  # type: ignore[attr-defined]

    assert found == ["b: 2.90, was 4.00"]


def test_each_quick_benchmark_has_committed_ratios(compare: object) -> None:
    for name in compare.QUICK:  # type: ignore[attr-defined]
        found = json.loads((BENCHMARKS / "results" / "speed" / f"{name}.json").read_text())
        assert found["name"] == name
        assert found["ratios"]
        assert all(ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in found["ratios"].values())
