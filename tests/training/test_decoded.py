"""Decoded copies: the same bytes as decoding anew, each made once, and none that was not written whole."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.training import views as module
from dermlens.training.views import decoded, larger_copy

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

    monkeypatch.setattr(module, "larger_copy", copy)
    return found


def opened(
    folder: Path, records: list[Record], spec: InputSpec = SPEC, told: io.StringIO | None = None
) -> Callable[[int], np.ndarray]:
    hashes = [f"{i:064x}" for i in range(N)]
    return decoded(folder / "pixels", records, hashes, spec, Console(file=told or io.StringIO(), width=300))


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
    monkeypatch.setattr(module, "MOST_OF_FREE", 0.0)
    told = io.StringIO()
    copy = opened(tmp_path, records, told=told)
    for _ in range(2):
        np.testing.assert_array_equal(copy(0), larger_copy(records[0], SPEC))
    assert counted == ["0.png", "0.png"] and not (tmp_path / "pixels" / "pixels.npy").exists()
    assert "decoded in every epoch: a copy of each would take" in told.getvalue()


def test_a_folder_that_cannot_be_made_costs_the_cache_and_no_more(tmp_path: Path, records: list[Record]) -> None:
    (tmp_path / "pixels").write_text("a file")
    np.testing.assert_array_equal(opened(tmp_path, records)(0), larger_copy(records[0], SPEC))
