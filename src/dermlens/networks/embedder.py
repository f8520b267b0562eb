"""The network whose embeddings the audit compares: ImageNet EfficientNet-Lite0, which never saw these labels.

It is exported once to an OpenVINO graph in the user's cache; TensorFlow is imported only for that.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from rich.console import Console

from dermlens.errors import StorageError
from dermlens.files import cache_folder, replace_folder, sha256_of_file

VERSION = "lite0-imagenet-1"
"""Names the graph and all embeddings made with it: raise the number when the weights or the export change."""

_SUMS = "sha256.json"
_GRAPH = "graph.xml"


def embedder_graph(console: Console, folder: Path | None = None) -> Path:
    """Return the path of the embedder's graph, uint8 (n, 224, 224, 3) in, float32 (n, 1280) out.

    Where it is missing or damaged it is exported first, which takes some ten seconds and is said on `console`.

    Raises:
        ModuleNotFoundError: TensorFlow or Keras is not installed.
        WeightsError: the weights are not installed or damaged.
        StorageError: the cache cannot be written.
    """
    home = (folder or cache_folder()) / "embedder" / VERSION
    if not _whole(home):
        console.print(f"Preparing the network that compares images, once, in {home} (ten seconds) ...", soft_wrap=True)
        _export(home)
    return home / _GRAPH


def _whole(home: Path) -> bool:
    """Whether every file is there and has the checksum that was noted when it was written."""
    try:
        sums = json.loads((home / _SUMS).read_text(encoding="utf-8"))
        return bool(sums) and all(sha256_of_file(home / name) == digest for name, digest in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _export(home: Path) -> None:
    """Make the graph; of two processes that do so at once, the second leaves the first one's in its place."""
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=home.parent) as folder:
            staging = Path(folder, home.name)
            staging.mkdir()
            _write(staging)
            if not _whole(home):
                replace_folder(staging, home)
    except OSError as error:
        if not _whole(home):
            raise StorageError(
                f"The embedder could not be written to {home}: {error.strerror or error}.",
                remedy="Free some space, or name another folder in DERMLENS_CACHE.",
            ) from error


def _write(staging: Path) -> None:
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    import keras
    import numpy as np
    import openvino as ov

    from dermlens.networks.efficientnet import build_backbone
    from dermlens.networks.openvino import check_export, to_openvino

    backbone = build_backbone("lite0", weights="lite")
    pooled = keras.layers.GlobalAveragePooling2D(name="embedding")(backbone.outputs[0])
    model = keras.Model(backbone.inputs[0], pooled, name="embedder")
    graph = to_openvino(model)
    check_export(model, graph, np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8))
    ov.save_model(graph, staging / _GRAPH, compress_to_fp16=False)
    sums = {name: sha256_of_file(staging / name) for name in (_GRAPH, "graph.bin")}
    (staging / _SUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
