"""kill -9 at random moments, then resume: the same bits as a training that nobody disturbed, in every mode."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import waiting

pytestmark = pytest.mark.long

TRAIN = """
import json, sys
from pathlib import Path
from dermlens.networks.backend import load_tensorflow
load_tensorflow()
from rich.console import Console
from dermlens.data.manifest import read_dataset
from dermlens.training import checkpoint, finish
from dermlens.training.recipe import Recipe
from dermlens.training.run import About, train
checkpoint.LARGEST_SHARE = 1.0  # write as often as there is time for
finish.plot_history = lambda *args, **settings: None  # Matplotlib takes seconds to start
data, out, settings, resume, every_s = sys.argv[1:]
train(read_dataset(Path(data)), Path(out), Recipe(**json.loads(settings)), About(name="x"), resume=resume == "resume",
      console=Console(width=150), checkpoint_every_s=float(every_s))
"""
SETTINGS = {
    "size_px": 32,
    "views": 1,
    "batch_size": 4,
    "head_epochs": 3,
    "epochs": 3,
    "train": 0.4,
    "select": 0.2,
    "calibrate": 0.2,
    "test": 0.2,
    "patience": 0,
}


def paint(folder: Path, per_class: int) -> Path:
    rng = np.random.default_rng(0)
    for name, colour in {"one": (150, 90, 60), "other": (180, 120, 90)}.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            image = np.clip(np.array(colour) + rng.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{index}.png"), image[:, :, ::-1])
    return folder


def start(
    data: Path, out: Path, settings: dict[str, object], resume: str = "new", every_s: float = 60
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRAIN, str(data), str(out), json.dumps(settings), resume, str(every_s)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def stage_of(checkpoint: Path) -> str | None:
    """Return the stage that a checkpoint belongs to, None where there is none."""
    try:
        with np.load(checkpoint) as file:
            return str(json.loads(str(file["head"]))["stage"])
    except FileNotFoundError:
        return None


def killed_while_training(
    data: Path, out: Path, settings: dict[str, object], resume: str, stage: str, after_s: float
) -> None:
    """Start a training and kill it `after_s` after it has written a checkpoint of `stage`."""
    checkpoint = out / "checkpoint.npz"
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    def reached() -> bool:
        return stage_of(checkpoint) == stage and checkpoint.stat().st_mtime_ns != before

    process = start(data, out, settings, resume, every_s=0)
    deadline = time.monotonic() + 240
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.communicate()[0][-3000:])
        time.sleep(0.005)
    time.sleep(after_s)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it had ended before it could be killed: make the training longer"


def weights(out: Path) -> list[np.ndarray]:
    from dermlens.training.network import load_keras

    return [np.asarray(v) for v in load_keras(out).get_weights()]


def same_bits(one: Path, other: Path) -> None:
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one / "bundle" / "graph.bin").read_bytes() == (other / "bundle" / "graph.bin").read_bytes()


def check(mode: str, folder: Path, kills: int, seed: int, per_class: int = 20) -> None:
    data = paint(folder / "data", per_class)
    settings = {**SETTINGS, "fine_tune": mode.split()[0]}
    if mode == "top fresh":
        settings["views"] = 0
    if mode == "head":
        settings["head_epochs"] = 400
    straight = finished(start(data, folder / "straight", settings))
    rng = random.Random(seed)
    for number in range(kills):
        resume = "resume" if number else "new"
        early = mode == "head" or (kills > 1 and number == 0)
        stage = "head" if early else "tune"
        killed_while_training(data, folder / "killed", settings, resume, stage, rng.uniform(0, 0.15))
    output = finished(start(data, folder / "killed", settings, "resume"))
    title = "Head on frozen features" if mode == "head" else "Fine-tuning"
    assert f"{title} resumes after step" in output and "resumes after step" not in straight
    same_bits(folder / "straight", folder / "killed")


@pytest.mark.parametrize("mode", ["head", "top", "full"])
def test_a_killed_training_ends_at_the_same_bits(mode: str, tmp_path: Path) -> None:
    check(mode, tmp_path, kills=1, seed=1)


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("mode", ["head", "top", "top fresh", "full"])
def test_a_training_killed_again_and_again_ends_at_the_same_bits(mode: str, seed: int, tmp_path: Path) -> None:
    check(mode, tmp_path, kills=4, seed=seed, per_class=40)


def test_ctrl_c_from_a_terminal_leaves_a_model_and_a_run_to_resume(tmp_path: Path) -> None:
    data = paint(tmp_path / "data", 20)
    settings = {**SETTINGS, "fine_tune": "top", "epochs": 60}
    finished(start(data, tmp_path / "straight", settings))
    process = start(data, tmp_path / "stopped", settings, every_s=0)
    waiting.until(lambda: stage_of(tmp_path / "stopped" / "checkpoint.npz") == "tune", process, within_s=300)
    process.send_signal(signal.SIGINT)
    output = finished(process)
    assert "Stopping after this step" in output and "Stopped by Ctrl-C" in output
    assert (tmp_path / "stopped" / "bundle" / "bundle.json").is_file()
    finished(start(data, tmp_path / "stopped", settings, "resume"))
    same_bits(tmp_path / "straight", tmp_path / "stopped")


def test_the_same_recipe_data_and_seed_give_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    data = paint(tmp_path / "data", 12)
    settings = {**SETTINGS, "fine_tune": "top", "epochs": 1}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        finished(start(data, tmp_path / name, {**settings, "seed": seed}))
    same_bits(tmp_path / "one", tmp_path / "again")
    with pytest.raises(AssertionError):
        same_bits(tmp_path / "one", tmp_path / "other")
