"""The gate of lower precision: what it lets through, what it stops, and what a machine without bfloat16 gets."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import MODELS_DIR, add_trust, load_bundle
from dermlens.bundle.decision import Calibration, DecisionRule
from dermlens.data.records import Record
from dermlens.evaluation import precision_gate
from dermlens.evaluation.fit_trust import Labelled
from dermlens.evaluation.precision_gate import choose_precision, compare
from dermlens.evaluation.precision_layers import heavy_layers, keeping_float32
from dermlens.inference.precision import has_bfloat16
from dermlens.inference.runtime import Runtime

EVEN = Calibration(1.0, (1 / 3,) * 3, (1 / 3,) * 3)
RULE = DecisionRule("largest_probability", 0.0)
SILENT = Console(file=io.StringIO())


def answers(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, n)
    logits = rng.normal(0, 1, (n, 3)).astype(np.float32)
    logits[np.arange(n), truth] += 2
    return truth, logits


def verdict(low: np.ndarray) -> dict[str, Any]:
    truth, full = answers()
    return compare(truth, np.arange(len(truth)), (full, low), (EVEN, EVEN), RULE)


def test_a_little_rounding_passes() -> None:
    _, full = answers()
    found = verdict(full + np.float32(1e-4))
    assert found["passed"] and found["failed"] == [] and found["agreement"] == 1.0
    assert found["change_p99"] < 1e-6 and found["images"] == 400


def test_each_limit_stops_what_breaks_it() -> None:
    truth, full = answers()
    turned = full.copy()
    wrong = np.flatnonzero(full.argmax(axis=1) == truth)[:40]
    turned[wrong] = np.roll(turned[wrong], 1, axis=1)
    found = verdict(turned)
    assert not found["passed"]
    assert len(found["failed"]) == 3 and found["balanced_accuracy_difference"]["high"] < 0
    unsure = verdict(full / 4)
    assert unsure["agreement"] == 1.0 and not unsure["passed"]
    assert unsure["failed"][-1] == "the calibration error is larger"


@pytest.fixture
def roles(tmp_path: Path) -> dict[str, Labelled]:
    rng, result = np.random.default_rng(0), {}
    for role, n in {"train": 60, "calibrate": 60, "test": 30}.items():
        records = []
        for index in range(n):
            path = tmp_path / f"{role}{index}.png"
            pixels = np.clip(tiny.colour(tiny.CODES[index % 3]) + rng.normal(0, 25, (40, 40, 3)), 0, 255)
            cv2.imwrite(str(path), pixels.astype(np.uint8)[:, :, ::-1])
            records.append(Record(image=path.name, path=path, diagnosis=tiny.CODES[index % 3]))
        labels = np.arange(n) % 3
        result[role] = Labelled(records, labels, np.arange(n))
    return result


def test_without_instructions_nothing_is_tried(
    roles: dict[str, Labelled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_gate, "has_bfloat16", lambda: False)
    record, arrays, graph = choose_precision(load_bundle(tiny.write(tmp_path / "b")), roles, seed=0, console=SILENT)
    assert (
        record["policy"] == "f32" and record["gate"] is None and graph is None and "no instructions" in record["reason"]
    )
    assert arrays == {}


@pytest.mark.parametrize(
    ("able", "name", "has", "faster"),
    [
        (["FP32"], "Intel(R) Xeon(R)", ["AVX2"], False),
        (["FP32", "BF16"], "Intel(R) Xeon(R)", ["AVX-512 BF16"], False),
        (["FP32", "BF16"], "Intel(R) Xeon(R)", ["AVX-512 BF16", "AMX BF16"], True),
        (["FP32", "BF16"], "Intel(R) Xeon(R)", None, True),
        (["FP32", "BF16"], "AMD EPYC", ["AVX-512 BF16"], True),
    ],
)
def test_bfloat16_counts_where_it_is_faster(
    able: list[str], name: str, has: list[str] | None, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"OPTIMIZATION_CAPABILITIES": able, "FULL_DEVICE_NAME": name}
    monkeypatch.setattr("openvino.Core", lambda: SimpleNamespace(get_property=lambda device, key: facts[key]))
    monkeypatch.setattr("dermlens.inference.precision.instructions", lambda: has)
    assert has_bfloat16.__wrapped__() is faster


def test_a_passed_gate_brings_facts_of_its_own_and_other_machines_keep_float32(
    roles: dict[str, Labelled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_gate, "has_bfloat16", lambda: True)
    calibration = {"temperature": 1.0, "prior": [0.2, 0.3, 0.5], "training_prior": [1 / 3] * 3}
    folder = tiny.write(tmp_path / "b", calibration=calibration)
    bundle = load_bundle(folder)
    record, arrays, graph = choose_precision(bundle, roles, seed=0, console=SILENT)
    assert record["gate"]["passed"] and record["policy"] == "bf16" and record["gate"]["role"] == "calibrate"
    record["bf16"]["calibration"]["temperature"] = 3.0
    add_trust(folder, {**bundle.card, "precision": record}, {}, "# tiny\n", None, arrays, graph)
    for able, precision, temperature in ((True, "bf16", 3.0), (False, "f32", 1.0)):
        monkeypatch.setattr("dermlens.inference.precision.has_bfloat16", lambda able=able: able)
        loaded = load_bundle(folder)
        assert (loaded.precision, loaded.calibration.temperature) == (precision, temperature)
        assert (loaded.trust is not None) == able  # the tiny bundle has none in float32
        assert load_bundle(folder, float32=True).calibration.temperature == 1.0
        assert Predictor(folder).predict(tiny.colour("RED")).diagnosis_code == "RED"


def test_a_failed_gate_keeps_its_figures_and_float32(
    roles: dict[str, Labelled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 1, (60, 3)) for _ in range(3)]
    monkeypatch.setattr(precision_gate, "KEPT", (0.0, 1.0))
    monkeypatch.setattr(precision_gate, "has_bfloat16", lambda: True)
    monkeypatch.setattr(precision_gate, "all_logits", lambda *a: (logits, np.arange(60)))
    record, arrays, _ = choose_precision(load_bundle(tiny.write(tmp_path / "b")), roles, seed=0, console=SILENT)
    assert record["policy"] == "f32" and not record["gate"]["passed"] and record["gate"]["failed"] and arrays == {}
    assert record["gate"]["float32_layers"] == record["gate"]["layers"] == 1  # the last that was tried


def test_marks_keep_layers_in_float32_and_say_nothing_to_float32(tmp_path: Path) -> None:
    source = MODELS_DIR / "default"
    shutil.copy(source / "graph.bin", tmp_path / "graph.bin")
    marked, layers = tmp_path / "graph.xml", len(heavy_layers(source / "graph.xml"))
    assert layers == 50
    marked.write_text(keeping_float32(source / "graph.xml", set(range(16))))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    plain = Runtime(source / "graph.xml", threads=1).run(pixels)
    np.testing.assert_array_equal(Runtime(marked, threads=1).run(pixels).logits, plain.logits)
    if has_bfloat16():
        ran = Runtime(marked, threads=1, precision="bf16")._single.get_compiled_model().get_runtime_model()
        facts = [op.get_rt_info() for op in ran.get_ordered_ops()]
        done = [f["runtimePrecision"].astype(str) for f in facts if f["layerType"].astype(str) == "Convolution"]
        assert done == ["f32"] * 16 + ["bf16"] * 33
    marked.write_text(keeping_float32(marked, set()))
    assert "precise" not in marked.read_text()
