"""Model, probe and majority side by side: on the model's own test, in pairs, and in plain words."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import BASELINES_FILE, HASH_CHARS, load_bundle
from dermlens.data.images import content_hash
from dermlens.data.manifest import read_dataset
from dermlens.errors import BundleError
from dermlens.evaluation.baselines import (
    AnswersOnTest,
    compare_test_answers,
    read_test_answers,
    standing,
)
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.evaluate import evaluate

CODES = ("MEL", "NV", "VASC")
pytestmark = pytest.mark.usefixtures("no_plots")


def answers(model_errors: int, probe_errors: int, n: int = 240) -> AnswersOnTest:
    """Three classes, MEL twice as common; of each 40 images the first so many are told wrongly."""
    truth = np.arange(n) % 4 % 3

    def wrong(errors: int) -> np.ndarray:
        return np.where(np.arange(n) % 40 < errors, (truth + 1) % 3, truth)

    hashes = tuple(f"{i:0{HASH_CHARS}x}" for i in range(n))
    return AnswersOnTest(hashes, np.arange(n), truth, wrong(model_errors), wrong(probe_errors), majority=0)


@pytest.mark.parametrize(
    ("model_errors", "probe_errors", "said"),
    [(4, 20, "is better than the linear probe: by 0."), (12, 12, "NOT shown to be better than the"), (20, 4, "WORSE")],
)
def test_it_says_plainly_whether_the_model_is_better_than_the_probe(
    model_errors: int, probe_errors: int, said: str
) -> None:
    found = compare_test_answers(answers(model_errors, probe_errors), CODES, seed=0)
    assert said in found["words"][0]
    assert found["better_than_probe"] == (model_errors < probe_errors)
    assert found["methods"]["majority"]["accuracy"]["value"] == pytest.approx(0.5)
    assert found["methods"]["majority"]["balanced_accuracy"]["value"] == pytest.approx(1 / 3)
    assert found["methods"]["majority"]["sensitivity"]["MEL"]["value"] == 1


def test_differences_are_those_of_the_paired_bootstrap() -> None:
    stored = answers(8, 14)
    found = compare_test_answers(stored, CODES, seed=3)["model_minus"]["linear_probe"]
    for measure in ("balanced_accuracy", "accuracy"):
        expected = paired_difference(stored.truth, stored.model, stored.probe, stored.lesions.tolist(), measure, seed=3)
        assert found[measure] == pytest.approx(expected)


def test_accuracy_below_the_most_common_class_is_told() -> None:
    truth = np.array([0] * 90 + [1] * 6 + [2] * 6)
    often_wrong = np.where(np.arange(102) < 30, 1, truth)
    stored = AnswersOnTest(answers(0, 0).hashes[:102], np.arange(102), truth, often_wrong, np.zeros(102, np.int64), 0)
    found = compare_test_answers(stored, CODES, seed=0)
    assert found["better_than_probe"]
    assert "By accuracy alone the model is not better than always answering melanoma" in found["words"][1]
    useless = compare_test_answers(replace(stored, model=np.zeros(102, np.int64)), CODES, seed=0)
    assert "NOT shown to be better than always answering melanoma" in useless["words"][1]


def test_a_difference_without_interval_claims_nothing() -> None:
    assert standing({"value": 0.2, "low": None, "high": None}) == "alike"
    assert standing({"value": -0.2, "low": None, "high": None}) == "alike"
    assert standing({"value": 0.0, "low": None, "high": None}) == "alike"
    assert standing({"value": 0.2, "low": -0.01, "high": 0.4}) == "alike"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for code in tiny.CODES:
        (tmp_path / "data" / code).mkdir(parents=True)
        for index in range(12):
            image = np.clip(tiny.colour(code) + rng.normal(0, 9, (40, 40, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "data" / code / f"{index}.png"), image[:, :, ::-1])
    return tmp_path / "data"


def with_baselines(folder: Path, data: Path, left_out: str = "") -> Path:
    """The tiny bundle, which errs on nothing, with a probe that calls everything RED."""
    tiny.write(folder)
    files = [path for path in sorted(data.rglob("*.png")) if not path.match(f"{left_out or 'none'}/*")]
    truth = np.array([tiny.CODES.index(path.parent.name) for path in files])
    hashes = tuple(content_hash(path.read_bytes())[:HASH_CHARS] for path in files)
    stored = AnswersOnTest(hashes, np.arange(len(files)), truth, truth, np.full(len(files), 2), majority=1)
    tiny.add(folder, {BASELINES_FILE: stored.arrays()})
    return folder


def scored(bundle: Path, data: Path, out: Path) -> tuple[dict[str, Any], str]:
    told = io.StringIO()
    console = Console(file=told, width=200)
    evaluate(Predictor(bundle), read_dataset(data), out, split=None, seed=0, console=console)
    return json.loads((out / "metrics.json").read_text())["baselines"], told.getvalue()


def test_evaluate_on_the_models_own_test_sets_probe_and_majority_beside_it(data: Path, tmp_path: Path) -> None:
    found, told = scored(with_baselines(tmp_path / "b", data), data, tmp_path / "out")
    assert found["available"] and found["images"] == found["images_of_the_split"] == 36
    assert found["decisions_changed"] == found["labels_changed"] == 0
    assert found["methods"]["model"]["balanced_accuracy"]["value"] == 1
    assert found["methods"]["linear_probe"]["balanced_accuracy"]["value"] == pytest.approx(1 / 3)
    assert found["majority_class"] == "GREEN"
    assert "On 36 of the 36 images" in told and "always GREEN" in told and "better than the linear probe" in told
    page = (tmp_path / "out" / "report.html").read_text()
    assert "always GREEN" in page and page.count("better than the linear probe") == 2, "verdict and section"


def test_a_part_of_the_test_is_compared_alone_and_what_changed_is_said(data: Path, tmp_path: Path) -> None:
    bundle = with_baselines(tmp_path / "b", data, left_out="BLUE")
    (data / "GREEN" / "0.png").rename(data / "RED" / "moved.png")
    found, told = scored(bundle, data, tmp_path / "out")
    assert (found["images"], found["images_scored"], found["labels_changed"]) == (24, 36, 1)
    assert "12 other images left out" in told and "1 have another label" in told


def test_on_other_images_no_probe_is_available(data: Path, tmp_path: Path) -> None:
    bundle = with_baselines(tmp_path / "b", data)
    for path in data.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    found, told = scored(bundle, data, tmp_path / "out")
    assert not found["available"] and found["reason"] in told
    assert "No linear probe is available for these images" in told
    assert "No linear probe is available for these images" in (tmp_path / "out" / "report.html").read_text()


def test_what_is_kept_comes_back_and_is_small(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "b")
    stored = answers(5, 9, n=2000)
    stored = replace(stored, hashes=tuple(content_hash(str(i).encode())[:HASH_CHARS] for i in range(2000)))
    tiny.add(folder, {BASELINES_FILE: stored.arrays()})
    back = read_test_answers(load_bundle(folder))
    assert back.hashes == stored.hashes and back.majority == 0
    for name in ("lesions", "truth", "model", "probe"):
        np.testing.assert_array_equal(getattr(back, name), getattr(stored, name))
    assert (folder / "baselines.npz").stat().st_size < 60_000


@pytest.mark.parametrize(
    "change",
    [{"probe": np.full(36, 9)}, {"model": np.zeros(3)}, {"majority": np.int32(-1)}, {"truth": np.full(36, -1)}],
)
def test_numbers_that_cannot_be_are_a_damaged_bundle(data: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = with_baselines(tmp_path / "b", data)
    stored = read_test_answers(load_bundle(folder))
    assert stored is not None
    tiny.add(folder, {BASELINES_FILE: {**stored.arrays(), **change}})
    with pytest.raises(BundleError, match=r"baselines\.npz"):
        read_test_answers(load_bundle(folder))
