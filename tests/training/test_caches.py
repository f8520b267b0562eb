"""The caches of a run: the same values as computing again, each made once, and none that was not written whole."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops
from rich.console import Console

from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.training import caches
from dermlens.training.caches import cached_probe, pixel_cache, trunk_cache
from dermlens.training.features import FeatureSpec, Images
from dermlens.training.probe import Probe
from dermlens.training.views import larger_copy

SPEC = InputSpec(size_px=32)
N = 3


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    rng = np.random.default_rng(0)
    for i in range(N):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 256, (50, 60, 3), dtype=np.uint8))
    return [Record(path=tmp_path / f"{i}.png", image=f"{i}.png", diagnosis="NV") for i in range(N)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are decoded, in order."""
    found: list[str] = []

    def copy(record: Record, spec: InputSpec) -> np.ndarray:
        found.append(record.image)
        return larger_copy(record, spec)

    monkeypatch.setattr(caches, "larger_copy", copy)
    return found


def opened(
    folder: Path, records: list[Record], spec: InputSpec = SPEC, told: io.StringIO | None = None
) -> Callable[[int], np.ndarray]:
    images = Images(records, [f"{i:064x}" for i in range(N)])
    return pixel_cache(folder / "pixels", images, spec, Console(file=told or io.StringIO(), width=300))


def test_each_image_is_decoded_once_also_by_a_run_that_goes_on(
    tmp_path: Path, records: list[Record], counted: list[str]
) -> None:
    first = opened(tmp_path, records)
    for row in (2, 0, 2, 0):
        np.testing.assert_array_equal(first(row), larger_copy(records[row], SPEC))
    assert counted == ["2.png", "0.png"]
    again = opened(tmp_path, records)
    for row in range(N):
        np.testing.assert_array_equal(again(row), larger_copy(records[row], SPEC))
    assert counted == ["2.png", "0.png", "1.png"]


def test_another_size_is_another_cache(tmp_path: Path, records: list[Record], counted: list[str]) -> None:
    opened(tmp_path, records)(0)
    other = opened(tmp_path, records, InputSpec(size_px=48))
    assert other(0).shape == (60, 60, 3) and counted == ["0.png", "0.png"]


def test_a_copy_that_was_not_written_whole_is_made_anew(
    tmp_path: Path, records: list[Record], counted: list[str]
) -> None:
    opened(tmp_path, records)(1)
    pixels = np.load(tmp_path / "pixels" / "pixels.npy", mmap_mode="r+")
    pixels[1, 20:] = 0  # as after a power cut
    pixels.flush()
    np.testing.assert_array_equal(opened(tmp_path, records)(1), larger_copy(records[1], SPEC))
    assert counted == ["1.png", "1.png"]


@pytest.mark.parametrize("name", ["pixels.npy", "sums.npy", "pixels.json"])
def test_a_cache_that_is_damaged_is_made_anew(
    tmp_path: Path, records: list[Record], counted: list[str], name: str
) -> None:
    opened(tmp_path, records)(1)
    file = tmp_path / "pixels" / name
    file.write_bytes(file.read_bytes()[:8])
    np.testing.assert_array_equal(opened(tmp_path, records)(1), larger_copy(records[1], SPEC))
    assert counted == ["1.png", "1.png"]


def test_without_the_space_images_are_decoded_at_every_draw(
    tmp_path: Path, records: list[Record], counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "PIXELS_SHARE", 0.0)
    told = io.StringIO()
    copy = opened(tmp_path, records, told=told)
    for _ in range(2):
        np.testing.assert_array_equal(copy(0), larger_copy(records[0], SPEC))
    assert counted == ["0.png", "0.png"] and not (tmp_path / "pixels" / "pixels.npy").exists()
    assert "decoded again in every epoch: pixels.npy needs" in told.getvalue()


def test_a_folder_that_cannot_be_made_costs_the_cache_and_no_more(tmp_path: Path, records: list[Record]) -> None:
    (tmp_path / "pixels").write_text("a file")
    np.testing.assert_array_equal(opened(tmp_path, records)(0), larger_copy(records[0], SPEC))


@pytest.fixture(scope="module")
def graph() -> ov.Model:
    """uint8 (n, 32, 32, 3) -> (n, 4, 4, 3): mean colours of tiles."""
    pixels = ops.parameter([-1, 32, 32, 3], ov.Type.u8, name="pixels")
    planes = ops.transpose(ops.convert(pixels, ov.Type.f32), [0, 3, 1, 2])
    pooled = ops.avg_pool(planes, [8, 8], [0, 0], [0, 0], [8, 8], exclude_pad=True)
    return ov.Model([ops.result(ops.transpose(pooled, [0, 2, 3, 1]))], [pixels], "tiles")


def features(folder: Path, graph: ov.Model, records: list[Record], artefacts: float = 0.0) -> np.ndarray:
    images, spec = Images(records, [f"{i:064x}" for i in range(N)]), FeatureSpec(SPEC, 2, 0, artefacts, dtype="float16")
    quiet = Console(file=io.StringIO())
    return np.array(trunk_cache(folder / "features", graph, images, spec, weights_id="w", console=quiet))


def test_artefacts_make_other_views_and_so_another_cache(
    tmp_path: Path, graph: ov.Model, records: list[Record]
) -> None:
    before = features(tmp_path, graph, records)
    assert before.shape == (N, 3, 4, 4, 3)
    drawn = features(tmp_path, graph, records, artefacts=1.0)
    np.testing.assert_array_equal(drawn[:, 0], before[:, 0], "the plain view stays plain")
    assert (drawn[:, 1:] != before[:, 1:]).any(axis=(2, 3, 4)).all()
    np.testing.assert_array_equal(features(tmp_path, graph, records), before)


def test_finished_features_are_read_and_not_computed_again(
    tmp_path: Path, graph: ov.Model, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = features(tmp_path, graph, records, artefacts=0.5)
    monkeypatch.setattr("dermlens.training.features.views", None)
    np.testing.assert_array_equal(features(tmp_path, graph, records, artefacts=0.5), before)


def test_embeddings_and_probe_are_computed_once_for_a_key(tmp_path: Path) -> None:
    one, path, quiet = np.ones(2), tmp_path / "frozen.npz", Console(file=io.StringIO(), width=300)
    probe = Probe(one, one, np.eye(2), one, np.arange(2), strength=0.1, classes=2, converged=True)
    computed: list[str] = []

    def cached(key: str) -> tuple[np.ndarray, Probe]:
        def compute() -> tuple[np.ndarray, Probe]:
            computed.append(key)
            return np.full((3, 2), 0.5, np.float32), probe

        return cached_probe(path, key, compute, quiet)

    for key in ("a", "a", "b"):
        embeddings, found = cached(key)
        assert embeddings.dtype == np.float32 and vars(found).keys() == vars(probe).keys()
        np.testing.assert_array_equal(found.probabilities(embeddings), probe.probabilities(embeddings))
    assert computed == ["a", "b"]
    path.write_bytes(path.read_bytes()[:-30])
    cached("b")
    assert computed == ["a", "b", "b"], "a damaged file is computed again"
    path.unlink()
    path.mkdir()
    cached("b")
    assert "was not saved" in quiet.file.getvalue()  # type: ignore[attr-defined]
