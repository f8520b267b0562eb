"""The walls of the house: who may import what, checked on the source and on a running program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "tensorflow",
    "keras",
    "torch",
    "sklearn",
    "pandas",
    "matplotlib",
    "scipy",
    "fastapi",
    "ray",
    "pyarrow",
    "fsspec",
    "optuna",
    "huggingface_hub",
}
REPORT = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in list(sys.modules)})))"


def loaded_by(program: str) -> set[str]:
    """Run a program in a fresh Python; return the top-level modules loaded at its end.

    Top-level names, not substrings: openvino has a module of its own named openvino.frontend.tensorflow.
    """
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{REPORT}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


VERBS = [
    "predict",
    "batch",
    "serve",
    "train",
    "tune",
    "audit",
    "evaluate",
    "calibrate",
    "export",
    "models",
    "package",
    "backbones",
    "doctor",
]


def test_help_loads_nothing_heavy() -> None:
    """One process for all verbs: what any of them loads is found at the end."""
    program = (
        "from dermlens.cli import main\n"
        f"for verb in {[[], *([verb] for verb in VERBS)]!r}:\n"
        "    try:\n"
        "        main([*verb, '--help'])\n"
        "    except SystemExit as end:\n"
        "        if end.code: raise"
    )
    assert not loaded_by(program) & (HEAVY | {"openvino", "cv2", "jinja2", "msgspec"})


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import dermlens") & (HEAVY | {"openvino", "cv2", "numpy"})


def test_predictor_loads_nothing_heavy() -> None:
    loaded = loaded_by("from dermlens import Predictor, Prediction, DermlensError")
    assert "openvino" in loaded
    assert not loaded & HEAVY


def test_unknown_name_says_what_is_offered() -> None:
    import dermlens

    with pytest.raises(AttributeError, match="Predictor"):
        dermlens.Predicter  # noqa: B018


def test_openvino_sends_no_usage_statistics() -> None:
    program = (
        "import dermlens.inference.runtime, sys, threading\n"
        "import openvino.tools.ovc\n"
        "assert sys.modules['openvino_telemetry'] is None, 'statistics are switched on'\n"
        "assert 'stub' in openvino.tools.ovc.telemetry_utils.tm.__name__\n"
        "print([t.name for t in threading.enumerate()])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['MainThread']"
