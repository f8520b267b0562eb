"""A trial learns from the views that a training with its recipe would learn from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops
from rich.console import Console

from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.training.feed import Draw, Feed
from dermlens.training.material import Material
from dermlens.training.recipe import Recipe
from dermlens.tuning import trial as trial_module
from dermlens.tuning.trial import Bench, Fold

FOLD = Fold(np.array([0, 1]), np.array([2, 3]))
FIRST_VIEWS = Draw(np.array([0, 1]), np.array([1, 1]), np.ones(2, np.float32))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    rng = np.random.default_rng(0)
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(90, 200, (40, 40, 3)).astype(np.uint8))
    records = tuple(Record(path=tmp_path / f"{i}.png", image=f"{i}.png", diagnosis="NV") for i in range(4))
    hashes, labels = tuple(f"{i:064x}" for i in range(4)), np.array([0, 1, 0, 1])
    material = Material(records, hashes, np.array(["train"] * 4), labels, ("NV", "MEL"), (), False, ())
    return Bench(material, [FOLD], tmp_path, Console(quiet=True))


def feed(bench: Bench, **settings: Any) -> Feed:
    stem: Any = SimpleNamespace(spec=InputSpec(size_px=32), trunk_id="w")
    network: Any = SimpleNamespace(trunk=None)
    return bench._feed(stem, network, Recipe(**{"batch_size": 2, **settings}), FOLD)


def test_fresh_views_hold_the_artefacts_of_the_recipe(bench: Bench) -> None:
    plain, drawn = (feed(bench, fine_tune="full", artefacts=share).load(FIRST_VIEWS) for share in (0.0, 1.0))
    assert (plain != drawn).any(axis=(1, 2, 3)).all()


def test_cached_views_hold_the_artefacts_of_the_recipe(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = ops.parameter([-1, 32, 32, 3], ov.Type.u8, name="pixels")
    graph = ov.Model([ops.result(ops.convert(pixels, ov.Type.f32))], [pixels], "pixels")
    monkeypatch.setattr(trial_module, "export_graph", lambda trunk, precision: graph)
    found = []
    for share in (0.0, 1.0):
        loaded = feed(bench, fine_tune="top", cut_block=1, views=1, artefacts=share).load(FIRST_VIEWS)
        key = json.loads((bench.out / "cache" / "cut-1" / "features.json").read_text())["key"]
        assert key["artefacts"] == share
        found.append(np.array(loaded))
    assert (found[0] != found[1]).any(axis=(1, 2, 3)).all()
