"""The doctor: what the processor can do, what will run, what is missing, in facts and in advice."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from rich.console import Console

import tiny
from dermlens.inference import doctor
from dermlens.reporting.terminal import show_doctor

XEON = "processor : 0\nflags\t\t: fpu avx2 avx512f avx512bw avx512vl avx512_vnni amx_tile amx_bf16 amx_int8\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (XEON, ["AVX2", "AVX-512", "AVX-512 VNNI", "AMX BF16", "AMX INT8"]),
        ("flags : fpu avx2 avx512f\n", ["AVX2"]),
        ("Features : fp asimd bf16\n", ["NEON", "BF16 (Arm)"]),
        ("flags : fpu sse2\n", []),
        ("nothing here\n", None),
    ],
)
def test_instructions_are_read(
    text: str, expected: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(doctor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    assert doctor.instructions() == expected


def test_a_quota_and_an_old_processor_are_advised_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(doctor, "CGROUP", tmp_path / "cpu.max")
    found = doctor.threads()
    assert found["container_share"] == 1.5
    said = doctor.advice([], {"processors": 8, "allowed": 8, "container_share": 1.5})
    assert len(said) == 2 and "neither AVX2 nor NEON" in said[0] and "1.5 of 8" in said[1]
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor.threads()["container_share"] is None
    assert doctor.advice(["AVX2"], {"processors": 2, "allowed": 2, "container_share": None}) == []


def test_what_runs_and_what_is_missing_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DERMLENS_MODELS", str(tmp_path))
    tiny.write(tmp_path / "mine")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else real(name))
    facts = doctor.examine()
    mine = next(model for model in facts["models"] if model["name"] == "mine")
    assert mine["runs"]["precision"] == "f32" and mine["runs"]["device"] == "CPU" and mine["runs"]["threads"] >= 1
    assert facts["missing"]["tune"]["modules"] == ["optuna"] and "[tune]" in facts["missing"]["tune"]["install"]
    assert facts["ready"][0] == "predict" and "serve" in facts["ready"] and "tune" not in facts["ready"]
    console = Console(width=200, record=True, file=(tmp_path / "out.txt").open("w"))
    show_doctor(facts, console)
    text = console.export_text()
    assert f"at {tiny.SIZE_PX} px on CPU in f32" in text and "for tune" in text and "instructions" in text
    assert "ready" in text and "predict, audit, train, evaluate, export, serve, batch" in text
    (tmp_path / "mine" / "graph.bin").write_bytes(b"damaged")
    facts = doctor.examine()
    assert facts["ok"] is False and not {"predict", "serve", "batch", "batch --engine ray"} & set(facts["ready"])
