"""The speed gate: a fallen ratio is noticed, there is something to compare with, and what makes it fast is not lost."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.runner import below_floor, fallen, find, quick_subjects
from dermlens.inference.machine import instructions

ROOT = Path(__file__).parents[2]


def test_only_a_ratio_that_has_fallen_further_than_allowed_is_reported() -> None:
    before = {"a": {"median": 10.0}, "b": {"median": 4.0}, "gone": {"median": 1.0}}
    now = {"a": {"median": 7.6}, "b": {"median": 2.9}, "new": {"median": 0.1}}

    assert fallen(before, now, 0.25) == ["b: 2.90, was 4.00"]


def test_a_ratio_below_its_floor_is_reported() -> None:
    now = {"a": {"median": 0.5, "floor": 0.6}, "b": {"median": 0.7, "floor": 0.6}, "free": {"median": 0.1}}

    assert below_floor(now) == ["a: 0.50, never below 0.6"]


def test_each_subject_that_can_be_compared_has_committed_ratios() -> None:
    compared = quick_subjects()
    assert {subject.name for subject in compared} == {"gate", "network", "one_image", "many_images"}
    for subject in compared:
        ratios = subject.read()["found"]["ratios"]
        assert ratios
        assert all(ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in ratios.values())


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason=f"speed is not compared: the floors are of x86-64, this is {platform.machine()}",
)
def test_no_ratio_has_fallen_far(tmp_path: Path) -> None:
    """Ratios of processor time in one run, so that a busy machine does not matter; three tries for a strange one."""
    if "AVX2" not in (instructions() or ["AVX2"]):
        pytest.skip("speed is not compared: this processor has no AVX2")
    before = find("gate").read()["found"]["ratios"]
    problems = ["not measured"]
    for _ in range(3):
        command = [sys.executable, "-m", "benchmarks", "gate", "--rounds", "3", "--out", str(tmp_path / "gate.json")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        now = json.loads((tmp_path / "gate.json").read_text())["found"]["ratios"]
        assert set(now) == set(before)
        problems = below_floor(now) + fallen(before, now, 0.6)
        if not problems:
            break
    assert problems == []
