"""Another probe than that of the training is not passed off as it (the whole chain is in test_run.py)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import tiny
from dermlens.bundle.bundle import load_bundle
from dermlens.data.records import Record
from dermlens.errors import DataError
from dermlens.evaluation.fit_trust import Labelled
from dermlens.training import held_out
from dermlens.training.held_out import refit_baselines


def test_a_probe_of_another_score_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(
        tiny.write(tmp_path / "b", probe={"balanced_accuracy": {"value": 0.5}, "regularisation_c": 0.01})
    )
    y = np.arange(30) % 3
    records = [Record(tmp_path / f"{i}.png", f"{i}.png", "RED") for i in range(30)]
    roles = {role: Labelled(records, y, np.arange(30)) for role in ("train", "select", "test")}
    embeddings = np.tile(np.eye(3, dtype=np.float32)[y], (3, 1))
    monkeypatch.setattr(held_out, "_embeddings", lambda *args: embeddings)
    told = io.StringIO()
    with pytest.raises(DataError, match=r"reaches 1\.000, that of the training reached 0\.500") as caught:
        refit_baselines(bundle, roles, Console(file=told, width=200))
    assert caught.value.code == "another_probe" and "balanced accuracy of 1.000" in told.getvalue()
