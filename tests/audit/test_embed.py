"""Embeddings: one run for each different file, kept by content, and a broken file keeps its row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

import pictures
from dermlens.audit.embed import Embedder, embed, key_of
from dermlens.audit.facts import ImageFacts, read_facts
from dermlens.data.records import Record


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """Return a graph that gives the mean of each of 7 x 7 tiles and channels, float32 (n, 147)."""
    path = tmp_path_factory.mktemp("graph") / "graph.xml"
    pixels = ops.parameter([-1, 224, 224, 3], np.uint8, "pixels")
    cut = ops.reshape(ops.convert(pixels, np.float32), [-1, 7, 32, 7, 32, 3], special_zero=False)
    means = ops.reduce_mean(cut, [2, 4])
    ov.save_model(ov.Model([ops.reshape(means, [-1, 147], special_zero=False)], [pixels], "tiles"), path)
    return Embedder(path, "tiles-1")


def a_set(folder: Path) -> tuple[list[Record], list[ImageFacts]]:
    for seed in range(3):
        pictures.save(folder / f"{seed}.png", pictures.lesion(seed))
    pictures.save(folder / "again.png", pictures.lesion(0))
    (folder / "broken.png").write_bytes(b"no image")
    records = [Record(path, path.name, "NV") for path in sorted(folder.glob("*.png"))]
    return records, read_facts(records)


def test_rows_keys_and_copies(tiles: Embedder, tmp_path: Path) -> None:
    records, facts = a_set(tmp_path)
    steps: list[int] = []
    vectors, keys = embed(records, facts, tiles, progress=steps.append)
    assert vectors.shape == (5, 147) and vectors.dtype == np.float16 and sum(steps) == 3
    assert keys[4] == "" and not vectors[4].any()
    assert (vectors[0] == vectors[3]).all() and keys[0] == keys[3]
    assert np.linalg.norm(vectors[0].astype(float) - vectors[1].astype(float)) > 10


def test_a_second_time_nothing_runs(tiles: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DERMLENS_CACHE", str(tmp_path / "cache"))
    records, facts = a_set(tmp_path / "set")
    vectors, keys = embed(records, facts, tiles, cache=True)
    again, same = embed(records, facts, Embedder(tmp_path / "no graph", "tiles-1"), cache=True)
    assert (again == vectors).all() and same == keys
    with pytest.raises(RuntimeError):  # other weights: nothing is kept, so the graph is needed
        embed(records, facts, Embedder(tmp_path / "no graph", "tiles-2"), cache=True)


def test_a_frame_that_is_stretched_is_another_picture(tiles: Embedder, tmp_path: Path) -> None:
    path = pictures.save(tmp_path / "a.png", pictures.lesion(1))
    one, other = Record(path, "a", "NV"), Record(path, "a", "NV", frame_aspect=2.0)
    (fact,) = read_facts([one])
    vectors, keys = embed([one, other], [fact, fact], tiles)
    assert keys[0] != keys[1] == key_of(other, fact)
    assert (vectors[0] != vectors[1]).any()


def test_nothing_to_embed(tiles: Embedder) -> None:
    assert embed([], [], tiles)[0].shape == (0, 0)
    assert embed([Record(Path("x"), "x", "NV")], [ImageFacts(None, "gone")], tiles)[1] == [""]
