"""Keras -> OpenVINO, checked against Keras.

The direct Keras export leaks batch-norm state as outputs and nothing fuses; through a SavedModel everything folds into
the convolutions. The graph takes uint8 so that no one can scale pixels differently, and keeps its weights in float32.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Sequence

import keras
import numpy as np
import openvino as ov
import tensorflow as tf
from openvino.preprocess import PrePostProcessor
from rich.console import Console

from dermlens.errors import StorageError, WeightsError
from dermlens.inference.runtime import compile_graph
from dermlens.networks.backend import AGREEMENT
from dermlens.networks.efficientnet import build_backbone
from dermlens.reporting.progress import track

REPEATS, WARM_UP = 20, 3  # of a latency measurement


def to_openvino(model: keras.Model) -> ov.Model:
    """Return the graph of a Keras model with one image input: uint8 (n, h, w, 3) in, the same outputs in order."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        return _through_saved_model(model)
    except (OSError, tf.errors.OpError) as error:
        raise StorageError(
            f"The graph could not be exported through {tempfile.gettempdir()}: {str(error).splitlines()[0]}.",
            remedy="Free some space there, or point TMPDIR to another folder.",
        ) from error


def _through_saved_model(model: keras.Model) -> ov.Model:
    with tempfile.TemporaryDirectory(prefix="dermlens-export-") as folder:
        saved = os.path.join(folder, "saved_model")
        archive = keras.export.ExportArchive()
        archive.track(model)
        signature = [keras.InputSpec(shape=(None, *model.inputs[0].shape[1:]), dtype="float32", name="pixels")]
        names = [f"output_{index}" for index in range(len(model.outputs))]

        def serve(pixels):  # type: ignore[no-untyped-def]
            outputs = model(pixels, training=False)
            return dict(zip(names, outputs if isinstance(outputs, (list, tuple)) else [outputs], strict=True))

        archive.add_endpoint("serve", serve, input_signature=signature)
        archive.write_out(saved, verbose=False)
        graph = ov.convert_model(saved)
    return _uint8_in_named_order(graph, names)


def _uint8_in_named_order(graph: ov.Model, names: list[str]) -> ov.Model:
    ordered = ov.Model([_result_named(graph, name) for name in names], graph.get_parameters(), "dermlens")
    processor = PrePostProcessor(ordered)
    processor.input(0).tensor().set_element_type(ov.Type.u8)
    return processor.build()


def _result_named(graph: ov.Model, name: str) -> object:
    for output in graph.outputs:
        if any(n == name or n.split(":")[0] == name for n in output.get_names()):
            return output.get_node()
    raise WeightsError(
        f"The exported graph has no output {name!r}; it has {[sorted(o.get_names()) for o in graph.outputs]}.",
        remedy="Use the pinned versions of keras, tensorflow and openvino in requirements/.",
    )


def check_export(model: keras.Model, graph: ov.Model, pixels: np.ndarray) -> float:
    """Compare the graph with Keras on `pixels`, uint8 (n, h, w, 3), and return the largest relative difference.

    Raises:
        WeightsError: an output differs by more than 1e-3 of its largest absolute value.
    """
    compiled = compile_graph(graph, batch=len(pixels))
    found = compiled(np.ascontiguousarray(pixels))
    expected = model(pixels.astype(np.float32), training=False)
    expected = expected if isinstance(expected, (list, tuple)) else [expected]
    worst = max(
        float(np.abs(found[index] - wanted).max() / max(1e-6, np.abs(wanted).max()))
        for index, wanted in enumerate(map(np.asarray, expected))
    )
    if not worst <= AGREEMENT:
        raise WeightsError(
            f"The exported graph differs from Keras by {worst:.2g} of the largest value. Allowed is {AGREEMENT}.",
            remedy="Report this with the output of `dermlens doctor`; the .keras model in the run folder is sound.",
        )
    return worst


def measure_latencies(names: Sequence[str], console: Console) -> dict[str, float]:
    """Return name -> milliseconds for one image at the backbone's own size, with random weights."""
    found = {}
    with track("Latency", len(names), console, unit="backbones") as advance:
        for name in names:
            found[name] = latency_ms(to_openvino(build_backbone(name, weights="none")))
            keras.backend.clear_session()
            advance(1)
    return found


def latency_ms(graph: ov.Model, repeats: int = REPEATS) -> float:
    """Return the median time of one image through an exported graph (OpenVINO, float32, all cores), milliseconds."""
    compiled = compile_graph(graph, batch=1)
    pixels = np.random.default_rng(0).integers(0, 256, tuple(compiled.input(0).shape), dtype=np.uint8)
    took = []
    for _ in range(WARM_UP + max(repeats, 1)):
        start = time.perf_counter()
        compiled(pixels, share_inputs=True)
        took.append(time.perf_counter() - start)
    return 1000 * statistics.median(took[WARM_UP:])
