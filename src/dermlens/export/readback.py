"""An exported file in the hands of its own runtime, in a process of its own, as a stranger would load it.

    python -m dermlens.export.readback FORMAT FILE PIXELS.npy ANSWER.npz

A graph that needs anything of the process that made it (a stray input, a registered layer) fails here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.errors import WeightsError
from dermlens.export.formats import FACTS_NAME, FORMATS, OUTPUTS

TIMEOUT_S = 900
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Answer:
    """What a runtime gave: float32 logits, embedding and feature map, the facts it found, and its own version."""

    outputs: list[np.ndarray]
    facts: dict[str, str]
    runtime: str


def read_back(name: str, path: Path, pixels: np.ndarray) -> Answer:
    """Load an exported file in a fresh process and run it on `pixels`, uint8 (n, h, w, 3).

    Raises:
        WeightsError: the runtime refuses the file.
    """
    with tempfile.TemporaryDirectory(prefix="dermlens-check-") as folder:
        given, answered = Path(folder, "pixels.npy"), Path(folder, "answer.npz")
        np.save(given, pixels)
        command = [sys.executable, "-m", "dermlens.export.readback", name, str(path), str(given), str(answered)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False
            )
        except subprocess.TimeoutExpired:
            raise _refused(name, f"no answer within {TIMEOUT_S} seconds") from None
        if done.returncode != 0 or not answered.is_file():
            raise _refused(name, done.stderr)
        with np.load(answered, allow_pickle=False) as arrays:
            texts = json.loads(str(arrays["facts"]))
            return Answer([arrays[output] for output in OUTPUTS], texts, str(arrays["runtime"]))


def _refused(name: str, stderr: str) -> WeightsError:
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    return WeightsError(
        f"{FORMATS[name].runtime} cannot use the exported {name} file: {lines[-1][:300] if lines else 'it gave up'}.",
        remedy="Use the pinned versions in requirements/export.txt; nothing was written.",
        code="export_unusable",
    )


def main(arguments: list[str]) -> None:
    """Answer for one file; see above."""
    name, path, given, answered = arguments
    run, texts = OPENERS[name](Path(path))
    pixels = np.load(given, allow_pickle=False)
    size = FORMATS[name].batch or len(pixels)
    parts = [run(np.ascontiguousarray(pixels[at : at + size])) for at in range(0, len(pixels), size)]
    package = FORMATS[name].runtime
    written: dict[str, Any] = {"facts": json.dumps(texts), "runtime": f"{package} {version(package)}"}
    written |= {output: np.concatenate([part[output] for part in parts]) for output in OUTPUTS}
    np.savez(Path(answered), allow_pickle=False, **written)


def _open_openvino(path: Path) -> tuple[Run, dict[str, str]]:
    from dermlens.inference.runtime import compile_graph, read_graph

    graph = read_graph(path)
    texts = {name: str(text) for name, text in graph.get_rt_info([FACTS_NAME]).value.items()}

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        answers = compile_graph(graph, batch=len(pixels))({"pixels": pixels})
        return {name: answers[name] for name in OUTPUTS}

    return run, texts


def _open_onnx(path: Path) -> tuple[Run, dict[str, str]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    texts = dict(session.get_modelmeta().custom_metadata_map)
    return lambda pixels: dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"pixels": pixels}), strict=True)), texts


def _open_litert(path: Path) -> tuple[Run, dict[str, str]]:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    model = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    texts = {entry.Name(): model.Buffers(entry.Buffer()) for entry in entries}
    runner = Interpreter(str(path)).get_signature_runner()
    return lambda pixels: runner(pixels=pixels), json.loads(texts[FACTS_NAME.encode()].DataAsNumpy().tobytes())


def _open_saved_model(path: Path) -> tuple[Run, dict[str, str]]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    texts = {name: value.numpy().decode() for name, value in loaded.signatures["metadata"]().items()}

    def run(pixels: np.ndarray) -> dict[str, Any]:
        answers = loaded.signatures["serving_default"](pixels=tf.constant(pixels))
        return {name: answers[name].numpy() for name in OUTPUTS}

    return run, texts


OPENERS: dict[str, Callable[[Path], tuple[Run, dict[str, str]]]] = {
    "openvino": _open_openvino,
    "onnx": _open_onnx,
    "litert": _open_litert,
    "saved-model": _open_saved_model,
}

if __name__ == "__main__":
    main(sys.argv[1:])
