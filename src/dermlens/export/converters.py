"""Keras -> ONNX, LiteRT and SavedModel, each with its facts inside.

All take uint8 pixels, so that no one can scale them differently, and name their outputs.

- ONNX is converted from a frozen graph: the direct ways leave captured constants of the normalisation as inputs.
- LiteRT has a fixed batch of one, which its accelerators want; the facts are a metadata buffer.
- A SavedModel gives its facts by the signature `metadata`, and for readers without TensorFlow in `assets.extra`.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dermlens.errors import WeightsError
from dermlens.export.formats import FACTS_NAME, OUTPUTS
from dermlens.training.network import in_float32

ONNX_OPSET = 18
INPUT = "pixels"
LITERT_IDENTIFIER = b"TFL3"
ASSET = "dermlens.json"


def keras_outputs(model: keras.Model, pixels: np.ndarray) -> list[np.ndarray]:
    """Return what Keras answers on the processor for uint8 (n, h, w, 3): logits, embedding and feature map."""
    with keras.device("cpu:0"):
        return [np.asarray(output) for output in model(pixels.astype(np.float32), training=False)]


def convert(model: keras.Model, name: str, texts: Mapping[str, str], path: Path, *, precision: str) -> None:
    """Write a Keras model in the format `name` to `path`.

    Args:
        model: float32 RGB 0..255 (n, h, w, 3) -> [logits, embedding, feature_map].
        texts: the facts, see `formats.facts`.
        precision: that the model computes in; what is written computes in float32.

    Raises:
        WeightsError: the converter does not manage this network.
    """
    write = {"onnx": _write_onnx, "litert": _write_litert, "saved-model": _write_saved_model}[name]
    try:
        with in_float32(model, precision), _calm():
            write(model, texts, path)
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"The network could not be converted to {name}: {first[:300]}.",
            remedy="Use the pinned versions in requirements/export.txt, or another format; nothing was written.",
            code="export_failed",
        ) from error


def _write_onnx(model: keras.Model, texts: Mapping[str, str], path: Path) -> None:
    import onnx
    import tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    size = model.inputs[0].shape[1:]
    called = tf.function(_answering(model), input_signature=[tf.TensorSpec((None, *size), tf.uint8, name=INPUT)])
    frozen = convert_variables_to_constants_v2(called.get_concrete_function())
    names = [tensor.name for tensor in frozen.outputs]  # those of a dictionary come in the order of its sorted keys
    made, _ = tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(),
        input_names=[tensor.name for tensor in frozen.inputs],
        output_names=[names[sorted(OUTPUTS).index(name)] for name in OUTPUTS],
        opset=ONNX_OPSET,
    )
    _rename(made.graph, {frozen.inputs[0].name: INPUT, **dict(zip(names, sorted(OUTPUTS), strict=True))})
    onnx.helper.set_model_props(made, dict(texts))
    onnx.checker.check_model(made)
    onnx.save(made, path)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give the inputs and outputs of an ONNX graph their names, and its batch the name `n`."""
    for value in [*graph.input, *graph.output]:
        value.name = names.get(value.name, value.name)
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]


def _write_litert(model: keras.Model, texts: Mapping[str, str], path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="dermlens-export-", dir=path.parent) as folder:
        _archive(model, Path(folder), batch=1)
        made = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"]).convert()
    path.write_bytes(_with_buffer(made, FACTS_NAME, json.dumps(dict(texts), ensure_ascii=False).encode()))


def _with_buffer(flat: bytes, name: str, content: bytes) -> bytes:
    """Return a LiteRT file with one more metadata buffer."""
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(flat, 0)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = name.encode(), len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(flat) + len(content) + 1024)
    builder.Finish(model.Pack(builder), LITERT_IDENTIFIER)
    return bytes(builder.Output())


def _write_saved_model(model: keras.Model, texts: Mapping[str, str], path: Path) -> None:
    _archive(model, path, batch=None, texts=texts)
    extra = path / "assets.extra"
    extra.mkdir()
    (extra / ASSET).write_text(json.dumps(dict(texts), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _archive(model: keras.Model, folder: Path, *, batch: int | None, texts: Mapping[str, str] | None = None) -> None:
    """Write a SavedModel with the signature `serving_default`, and with `metadata` where facts are given.

    Half the size of what Keras's own ExportArchive writes, which holds each weight twice.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    spec = tf.TensorSpec((batch, *model.inputs[0].shape[1:]), tf.uint8, name=INPUT)
    signatures = {"serving_default": tf.function(_answering(model), input_signature=[spec])}
    if texts is not None:
        constants = {name: tf.constant(text) for name, text in texts.items()}
        signatures["metadata"] = tf.function(lambda: constants, input_signature=[])
    tf.saved_model.save(module, str(folder), signatures=signatures)


def _answering(model: keras.Model) -> Callable[[Any], dict[str, Any]]:
    def serve(pixels: Any) -> dict[str, Any]:
        return dict(zip(OUTPUTS, model(tf.cast(pixels, tf.float32), training=False), strict=True))

    return serve


@contextmanager
def _calm() -> Iterator[None]:
    """Keep the converters' deprecation notes from whoever waits; errors are raised as always."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "tf2onnx", "absl")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
