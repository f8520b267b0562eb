"""The embedder: exported once, checked, made anew when damaged, and never in the way of a full disk."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from rich.console import Console

from dermlens.errors import StorageError
from dermlens.networks import embedder
from dermlens.networks.embedder import embedder_graph
from dermlens.networks.weights import KNOWN, fingerprint_image


def test_the_graph_gives_pooled_features() -> None:
    graph = embedder_graph(Console(file=io.StringIO()))  # in the cache that all tests share
    compiled = ov.Core().compile_model(ov.Core().read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(fingerprint_image(224).astype(np.uint8))[0]
    assert found.shape == (1, 1280) and found.dtype == np.float32
    known = KNOWN["lite0"]
    assert found[0, list(known)] == pytest.approx(list(known.values()), abs=5e-3)


def test_made_once_told_and_made_anew_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def write(staging: Path) -> None:
        made.append(staging)
        (staging / "graph.xml").write_text("graph")
        (staging / "sha256.json").write_text(json.dumps({"graph.xml": hashlib.sha256(b"graph").hexdigest()}))

    monkeypatch.setattr(embedder, "_write", write)
    console = Console(file=io.StringIO(), width=300)
    graph = embedder_graph(console, tmp_path)
    assert "once" in console.file.getvalue() and len(made) == 1  # type: ignore[attr-defined]
    silent = Console(file=io.StringIO())
    assert embedder_graph(silent, tmp_path) == graph
    assert silent.file.getvalue() == "" and len(made) == 1  # type: ignore[attr-defined]
    for damaged in ("other", ""):
        graph.write_text(damaged)
        assert embedder_graph(silent, tmp_path).read_text() == "graph"
    (graph.parent / "sha256.json").unlink()
    embedder_graph(silent, tmp_path)
    assert len(made) == 4
    assert [p.name for p in graph.parent.parent.iterdir()] == [embedder.VERSION]  # nothing half finished stays


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="DERMLENS_CACHE"):
        embedder_graph(Console(file=io.StringIO()), tmp_path / "file")
