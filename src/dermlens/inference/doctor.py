"""What this machine offers: processor, packages, models, and what is missing for which verb."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from dermlens.bundle.bundle import MODELS_DIR, embedded_models, load_bundle, user_models, user_models_dir
from dermlens.errors import DermlensError
from dermlens.inference.machine import advice, instructions, threads
from dermlens.inference.runtime import Runtime

PACKAGES = (
    "dermlens",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "openvino",
    "tensorflow",
    "keras",
    "scikit-learn",
)
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


def examine() -> dict[str, Any]:
    """Return the facts as one JSON-ready mapping; `ok` is False when a model is missing or unusable."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    missing = {}
    for verb, (extra, modules) in EXTRAS.items():
        absent = [m for m in modules if importlib.util.find_spec(m) is None]
        if absent:
            missing[verb] = {
                "modules": absent,
                "install": f'{sys.executable} -m pip install -e ".[{extra}]" in the clone',
            }
    models = [_try_model(name, MODELS_DIR / name) for name in embedded_models()]
    models += [_try_model(name, user_models_dir() / name) for name in user_models()]
    core, able, processors = ov.Core(), instructions(), threads()
    ok = bool(embedded_models()) and all(m["status"] == "ok" for m in models)
    return {
        "ok": ok,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": core.get_property("CPU", "FULL_DEVICE_NAME"),
        "optimised_for": [c for c in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") if c in PRECISIONS],
        "cores": os.cpu_count(),
        "instructions": able,
        "threads": processors,
        "advice": advice(able, processors),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "packages": found,
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
