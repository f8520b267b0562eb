"""The speed suite: a fallen ratio is told, there is something to compare with, and what makes it fast is not lost."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dermlens.inference.doctor import instructions

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


def test_a_ratio_below_its_floor_is_told(compare: object) -> None:
    now = {"a": {"median": 0.5, "floor": 0.6}, "b": {"median": 0.7, "floor": 0.6}, "free": {"median": 0.1}}

    assert compare.below_floor(now) == ["a: 0.50, never below 0.6"]  # type: ignore[attr-defined]


def test_each_quick_benchmark_has_committed_ratios(compare: object) -> None:
    for name in compare.QUICK:  # type: ignore[attr-defined]
        found = json.loads((BENCHMARKS / "results" / "speed" / f"{name}.json").read_text())
        assert found["name"] == name
        assert found["ratios"]
        assert all(ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in found["ratios"].values())


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason=f"speed is not compared: the floors are of x86-64, this is {platform.machine()}",
)
def test_no_ratio_has_fallen_far(compare: object, tmp_path: Path) -> None:
    """Ratios of processor time in one run, so that a busy machine does not matter; three tries for a strange one."""
    if "AVX2" not in (instructions() or ["AVX2"]):
        pytest.skip("speed is not compared: this processor has no AVX2")
    before = json.loads((BENCHMARKS / "results" / "speed" / "quick.json").read_text())["ratios"]
    fallen = ["not measured"]
    for _ in range(3):
        command = [sys.executable, str(BENCHMARKS / "quick.py"), "--rounds", "3"]
        done = subprocess.run(
            command,
            env={**os.environ, "DERMLENS_BENCH_OUT": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        now = json.loads((tmp_path / "quick.json").read_text())["ratios"]
        assert set(now) == set(before)
        fallen = compare.below_floor(now) + compare.fallen(before, now, 0.6)  # type: ignore[attr-defined]
        if not fallen:
            break
    assert fallen == []
