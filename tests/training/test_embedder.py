"""The embedder: exported once, checked, made anew when damaged, and never in the way of a full disk."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from rich.console import Console

from dermlens.errors import StorageError
from dermlens.training import embedder
from dermlens.training.embedder import cache_folder, embedder_graph


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DERMLENS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("DERMLENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dermlens"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_folder() == Path.home() / ".cache" / "dermlens"


def test_exported_once_told_and_repaired(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    graph = embedder_graph(console, tmp_path)
    assert "once" in console.file.getvalue()  # type: ignore[attr-defined]
    assert [p.name for p in graph.parent.parent.iterdir()] == [embedder.VERSION]
    before = graph.stat().st_mtime_ns
    silent = Console(file=io.StringIO())
    assert embedder_graph(silent, tmp_path) == graph
    assert silent.file.getvalue() == "" and graph.stat().st_mtime_ns == before  # type: ignore[attr-defined]
    graph.with_suffix(".bin").write_bytes(b"damaged")
    embedder_graph(silent, tmp_path)
    compiled = ov.Core().compile_model(ov.Core().read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    pixels = np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3), np.uint8)
    found = compiled(pixels)[0]
    assert found.shape == (1, 1280) and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 6 and found.std() > 0.01


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="DERMLENS_CACHE"):
        embedder_graph(Console(file=io.StringIO()), tmp_path / "file")
