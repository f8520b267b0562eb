"""The trunk cache: made anew when the views change, kept when they do not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops
from rich.console import Console

from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.training.features import trunk_cache

SPEC = InputSpec(size_px=32)
N = 3


@pytest.fixture(scope="module")
def graph() -> ov.Model:
    """uint8 (n, 32, 32, 3) -> (n, 4, 4, 3): mean colours of tiles."""
    pixels = ops.parameter([-1, 32, 32, 3], ov.Type.u8, name="pixels")
    planes = ops.transpose(ops.convert(pixels, ov.Type.f32), [0, 3, 1, 2])
    pooled = ops.avg_pool(planes, [8, 8], [0, 0], [0, 0], [8, 8], exclude_pad=True)
    return ov.Model([ops.result(ops.transpose(pooled, [0, 2, 3, 1]))], [pixels], "tiles")


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    rng = np.random.default_rng(0)
    for i in range(N):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(90, 200, (40, 40, 3)).astype(np.uint8))
    return [Record(path=tmp_path / f"{i}.png", image=f"{i}.png", diagnosis="NV") for i in range(N)]


def cache(folder: Path, graph: ov.Model, records: list[Record], **changes: float) -> np.ndarray:
    return np.array(
        trunk_cache(
            folder,
            graph,
            records,
            [f"{i:064x}" for i in range(N)],
            SPEC,
            view_count=2,
            seed=0,
            weights_id="w",
            console=Console(file=io.StringIO()),
            **changes,
        )
    )


def test_artefacts_make_other_views_and_so_another_cache(
    tmp_path: Path, graph: ov.Model, records: list[Record]
) -> None:
    folder = tmp_path / "cache"
    before = cache(folder, graph, records)
    assert before.shape == (N, 3, 4, 4, 3)
    assert json.loads((folder / "features.json").read_text())["key"]["artefacts"] == 0.0
    drawn = cache(folder, graph, records, artefacts=1.0)
    np.testing.assert_array_equal(drawn[:, 0], before[:, 0], "the plain view stays plain")
    assert (drawn[:, 1:] != before[:, 1:]).any(axis=(2, 3, 4)).all()
    np.testing.assert_array_equal(cache(folder, graph, records), before)


def test_a_finished_cache_is_read_and_not_made_again(
    tmp_path: Path, graph: ov.Model, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache(tmp_path / "cache", graph, records, artefacts=0.5)
    monkeypatch.setattr("dermlens.training.features.views", None)
    np.testing.assert_array_equal(cache(tmp_path / "cache", graph, records, artefacts=0.5), before)
