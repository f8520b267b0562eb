"""`--engine`, `--address` and `--devices`: what is wrong is told before anything is read; what is right trains."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from dermlens.cli.app import app
from dermlens.cli.options import wants_ray
from dermlens.cli.train import check_address, device_count
from dermlens.errors import MissingExtraError, UsageError


def test_options_of_ray_need_ray() -> None:
    assert not wants_ray("local", None, None) and wants_ray("ray", "here:1", 2)
    with pytest.raises(UsageError, match="are options of Ray"):
        wants_ray("local", "here:1", None)


def test_a_missing_ray_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else found(name, *more))
    with pytest.raises(MissingExtraError, match="ray") as caught:
        wants_ray("ray", None, None)
    assert "[scale]" in caught.value.remedy


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with pytest.raises(UsageError, match="does not answer"):
        check_address("127.0.0.1:1")


@pytest.mark.parametrize(("given", "setting"), [(None, None), ("all", 0), ("3", 3)])
def test_devices_are_a_recipe_setting(given: str | None, setting: int | None) -> None:
    assert device_count(given) == setting


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5", ""])
def test_devices_that_are_no_number_are_refused(given: str) -> None:
    with pytest.raises(UsageError, match="--devices is"):
        device_count(given)


@pytest.mark.long
def test_a_training_on_a_cluster_leaves_what_one_process_leaves(tmp_path: Path) -> None:
    from ray_nodes import cluster_of_two

    data, rng = tmp_path / "data", np.random.default_rng(0)
    for name, colour in {"rash": (220, 120, 120), "healthy": (230, 200, 180)}.items():
        (data / name).mkdir(parents=True)
        for index in range(12):
            image = np.clip(np.array(colour) + rng.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(data / name / f"{index}.png"), image[:, :, ::-1])
    settings: dict[str, Any] = {"size_px": 32, "batch_size": 4, "head_epochs": 2, "epochs": 1, "views": 2}
    shares = {"train": 0.4, "select": 0.2, "calibrate": 0.2, "test": 0.2}
    chosen = [word for name, value in (settings | shares).items() for word in ("--set", f"{name}={value}")]
    with cluster_of_two() as (cluster, _):
        for engine in (["local"], ["ray", "--address", cluster.address]):
            command = ["train", str(data), "--out", str(tmp_path / engine[0]), "--fine-tune", "top", *chosen]
            done = CliRunner().invoke(app, [*command, "--engine", *engine])
            assert done.exit_code == 0, done.output
    caches = [np.load(tmp_path / name / "cache" / "train" / "features.npy") for name in ("local", "ray")]
    np.testing.assert_array_equal(*caches)
    metrics = [
        json.loads((tmp_path / name / "bundle" / "bundle.json").read_text())["metrics"] for name in ("local", "ray")
    ]
    assert metrics[0] == metrics[1]
