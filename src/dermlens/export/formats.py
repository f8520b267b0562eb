"""The formats that a model can be exported to, and what each file says of itself.

A network alone is easily used wrongly: with other classes, scaled pixels, uncalibrated probabilities. So every file
carries the same facts, as text by name, in its format's own place. No Keras here: an OpenVINO graph is made without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from dermlens import __version__
from dermlens.bundle.bundle import Bundle
from dermlens.data.images import InputSpec
from dermlens.diagnoses import DISCLAIMER
from dermlens.errors import StorageError
from dermlens.inference.runtime import read_graph

OUTPUTS = ("logits", "embedding", "feature_map")
FACTS_NAME = "dermlens"
SCHEMA = "dermlens/export/1"


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: as `--format` calls it.
        suffix: of the file, or of the folder's name.
        runtime: the package that runs it.
        extra: what installs all that it needs, and `modules`, those that making or checking it imports.
        batch: images that it takes at once, None for any number.
        keras: it is made from the Keras model; otherwise from the bundle's graph.
    """

    name: str
    suffix: str
    runtime: str
    extra: str
    modules: tuple[str, ...]
    batch: int | None = None
    keras: bool = True


FORMATS = {
    one.name: one
    for one in (
        Format("openvino", ".xml", "openvino", "train", (), keras=False),
        Format("onnx", ".onnx", "onnxruntime", "export", ("tensorflow", "tf2onnx", "onnx", "onnxruntime")),
        Format("litert", ".tflite", "ai-edge-litert", "export", ("tensorflow", "ai_edge_litert"), batch=1),
        Format("saved-model", "_saved_model", "tensorflow", "train", ("tensorflow",)),
    )
}


def facts(bundle: Bundle, chosen: Format) -> dict[str, str]:
    """Return what an exported file says of itself, name -> text; what is not plain text is JSON."""
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "name": bundle.name,
        "version": bundle.version,
        "scope": bundle.scope,
        "disclaimer": DISCLAIMER,
        "bundle_sha256": bundle.sha256,
        "dermlens_version": __version__,
        "classes": [{"code": c, "name": n} for c, n in zip(bundle.codes, bundle.names, strict=True)],
        "input": _input(bundle.input_spec, chosen),
        "outputs": list(OUTPUTS),
        "calibration": {**bundle.calibration.as_dict(), "fitted": bundle.calibrated},
        "case_mix": bundle.case_mix.as_dict(),
        "probabilities": "softmax(logits / temperature + bias + log(case_mix) - log(training_prior))",
        "diagnosis": "the class with the largest probability",
        "licence": bundle.card.licence.as_dict(),
        "not_in_this_file": "novelty, picture quality, prediction sets, referral thresholds: see the bundle",
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def _input(spec: InputSpec, chosen: Format) -> dict[str, Any]:
    n = chosen.batch or "n"
    pixels = {"name": "pixels", "type": "uint8", "colour": "RGB", "range": [0, 255]}
    return {**pixels, "shape": [n, spec.size_px, spec.size_px, 3], **spec.as_dict()}


def write_openvino(graph_path: Path, texts: Mapping[str, str], path: Path) -> None:
    """Write the bundle's graph with names and facts (`rt_info`, section `dermlens`) to `path` and its .bin beside it.

    Raises:
        StorageError: it cannot be written.
    """
    graph = read_graph(graph_path)
    graph.input(0).get_tensor().set_names({"pixels"})
    for output, name in zip(graph.outputs, OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    for name, text in texts.items():
        graph.set_rt_info(text, [FACTS_NAME, name])
    try:
        ov.save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO's word for a full disk
        raise StorageError(
            f"OpenVINO could not write {path}: {str(error).splitlines()[0]}.",
            remedy="Free some space or choose another --out.",
        ) from error
