"""Checkpoints: read back as written, only for their own run, and never lost to a full disk or a damaged file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dermlens.training import checkpoint as module
from dermlens.training.checkpoint import Checkpoint

ARRAYS = {"model": [np.arange(6.0).reshape(2, 3), np.array(3)], "best": [np.zeros(12, np.float32)]}
VALUES = {"step": 7, "rows": [{"epoch": 0.0}]}


def made(folder: Path, key: str = "key", told: io.StringIO | None = None) -> Checkpoint:
    return Checkpoint(folder / "checkpoint.npz", key, Console(file=told or io.StringIO(), width=200), every_s=0.0)


def test_what_was_saved_is_read_back_in_order_and_kind(tmp_path: Path) -> None:
    many = {"model": [np.full(2, i) for i in range(12)], **{k: v for k, v in ARRAYS.items() if k != "model"}}
    made(tmp_path).save("tune", many, VALUES)
    saved = made(tmp_path).load()
    assert saved is not None and saved.stage == "tune" and saved.values == VALUES
    assert [int(a[0]) for a in saved.arrays["model"]] == list(range(12))
    assert saved.arrays["best"][0].dtype == np.float32


def test_another_run_or_none_gives_nothing(tmp_path: Path) -> None:
    assert made(tmp_path).load() is None
    made(tmp_path).save("head", ARRAYS, VALUES)
    assert made(tmp_path, key="other").load() is None


def test_a_damaged_file_is_told_and_not_used(tmp_path: Path) -> None:
    told = io.StringIO()
    made(tmp_path).save("head", ARRAYS, VALUES)
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:-40])
    assert made(tmp_path, told=told).load() is None
    assert "cannot be read" in told.getvalue()


def test_a_full_disk_is_told_and_leaves_the_last_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    made(tmp_path).save("head", ARRAYS, VALUES)

    def full(*args: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.np, "savez", full)
        assert made(tmp_path, told=told).save("head", ARRAYS, {**VALUES, "step": 8}) is False
    assert "No space left on device" in told.getvalue() and "last good checkpoint is kept" in told.getvalue()
    saved = made(tmp_path).load()
    assert saved is not None and saved.values["step"] == 7
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.npz"]


def test_writing_takes_a_small_share_of_the_time(tmp_path: Path) -> None:
    checkpoint = made(tmp_path)
    assert checkpoint.due()
    checkpoint._cost_s, checkpoint._last = 3.0, module.time.monotonic() - 50
    assert not checkpoint.due(), "3 s of writing want 60 s of training"
    checkpoint._last -= 11
    assert checkpoint.due()


def test_assigning_refuses_another_number_or_shape() -> None:
    import tensorflow as tf

    variable = tf.Variable([1.0, 2.0])
    module.assign([variable], [np.array([3.0, 4.0])])
    assert variable.numpy().tolist() == [3.0, 4.0]
    with pytest.raises(ValueError, match="shape"):
        module.assign([variable], [np.zeros(3)])
    with pytest.raises(ValueError):
        module.assign([variable], [])
