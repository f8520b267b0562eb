"""What this machine offers: processor, packages, models, and what is missing for which command."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.bundle.bundle import MODELS_DIR, embedded_models, load_bundle, user_models, user_models_dir
from dermlens.errors import DermlensError
from dermlens.inference.runtime import Runtime, core

PACKAGES = ("dermlens", "numpy", "opencv-python-headless", "pillow", "openvino", "tensorflow", "keras", "scikit-learn")
PRECISIONS = ("FP32", "BF16", "FP16", "INT8")
EXTRAS = {
    "audit, train, evaluate": ("train", ("tensorflow", "keras", "sklearn", "pandas", "matplotlib")),
    "export": ("export", ("tensorflow", "tf2onnx", "onnx", "onnxruntime", "ai_edge_litert")),
    "tune": ("tune", ("optuna",)),
    "serve": ("serve", ("fastapi", "uvicorn", "prometheus_client", "python_multipart")),
    "batch": ("batch", ("fsspec", "pyarrow")),
    "batch --engine ray": ("scale", ("ray",)),
    "models add hf://": ("hub", ("huggingface_hub",)),
}
NEED_A_MODEL = ("predict", "serve", "batch", "batch --engine ray")
CPUINFO, CGROUP = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup/cpu.max")
_INSTRUCTIONS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f", "avx512bw", "avx512vl"},
    "AVX-512 VNNI": {"avx512_vnni"},
    "AVX-512 BF16": {"avx512_bf16"},
    "AMX BF16": {"amx_tile", "amx_bf16"},
    "AMX INT8": {"amx_tile", "amx_int8"},
    "NEON": {"asimd"},
    "SVE": {"sve"},
    "BF16 (Arm)": {"bf16"},
}
"""Names that people know -> the flags of /proc/cpuinfo that all must be there."""


def examine() -> dict[str, Any]:
    """Return the facts as one JSON-ready mapping; `ok` is False when a model is missing or unusable."""
    missing = {}
    for verb, (extra, modules) in EXTRAS.items():
        if absent := [m for m in modules if importlib.util.find_spec(m) is None]:
            install = f'{sys.executable} -m pip install -e ".[{extra}]" in the clone'
            missing[verb] = {"modules": absent, "install": install}
    models = [_try_model(name, MODELS_DIR / name) for name in embedded_models()]
    models += [_try_model(name, user_models_dir() / name) for name in user_models()]
    able, processors = instructions(), threads()
    ok = bool(embedded_models()) and all(m["status"] == "ok" for m in models)
    return {
        "ok": ok,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": core().get_property("CPU", "FULL_DEVICE_NAME"),
        "optimised_for": [c for c in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") if c in PRECISIONS],
        "cores": os.cpu_count(),
        "instructions": able,
        "threads": processors,
        "advice": advice(able, processors),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "packages": {name: _version(name) for name in PACKAGES},
        "ready": [verb for verb in ("predict", *EXTRAS) if verb not in missing and (ok or verb not in NEED_A_MODEL)],
        "missing": missing,
        "models": models,
    }


def _try_model(name: str, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        bundle = load_bundle(folder)
        size = bundle.input_spec.size_px
        runtime = Runtime(bundle.graph_path)
        runtime.run(np.zeros((1, size, size, 3), np.uint8))
    except DermlensError as error:
        return {"name": name, "status": "error", "error": error.as_dict()}
    return {
        "name": name,
        "status": "ok",
        "version": bundle.version,
        "load_and_first_answer_ms": round((time.perf_counter() - start) * 1000),
        "graph": str(bundle.graph_path),
        "input_px": size,
        "runs": runtime.facts(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def instructions() -> list[str] | None:
    """Return the instruction sets that matter for networks; None where the system does not list them."""
    flags = _flags()
    return None if flags is None else [name for name, needed in _INSTRUCTIONS.items() if needed <= flags]


def _flags() -> set[str] | None:
    if sys.platform == "darwin":
        return _mac_flags()
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(values.split())
    return None


def _mac_flags() -> set[str] | None:
    if platform.machine() == "arm64":
        return {"asimd"}
    command = ["sysctl", "-n", "machdep.cpu.leaf7_features"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return set(said.lower().split())


def threads() -> dict[str, Any]:
    """Return the processors of the machine, those that this process may run on, and a container's share of them."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processors": os.cpu_count(), "allowed": own, "container_share": _container_share()}


def _container_share() -> float | None:
    """Return how many processors a container's quota is worth; None without a quota."""
    try:
        quota, period = CGROUP.read_text(encoding="ascii").split()
        return None if quota == "max" else round(int(quota) / int(period), 2)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def advice(found: list[str] | None, processors: dict[str, Any]) -> list[str]:
    """Return what to do about the facts, a sentence each; nothing where all is well."""
    said = []
    if found is None:
        said.append("This system does not list the instructions of its processor.")
    elif not {"AVX2", "AVX-512", "NEON"} & set(found):
        said.append("The processor has neither AVX2 nor NEON: networks run several times slower.")
    share, allowed = processors["container_share"], processors["allowed"] or 1
    if share is not None and share < allowed:
        said.append(
            f"The container may use {share:g} of {allowed} processors: give Predictor about as many threads, or they "
            "wait for each other."
        )
    return said
