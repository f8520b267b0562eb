"""A finished bundle gets its trust facts from the images of its training; other images are refused."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import BASELINES_FILE, HASH_CHARS, load_bundle
from dermlens.data.images import content_hash
from dermlens.data.manifest import read_dataset
from dermlens.errors import DataError
from dermlens.evaluation.baselines import AnswersOnTest, read_test_answers
from scripts.default_model.__main__ import main
from scripts.default_model.facts import refit_facts

QUIET = Console(file=io.StringIO(), width=200)
ROLES = {"train": 60, "calibrate": 60, "test": 30}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny bundle that remembers which of the images had which role, and their folder."""
    rng = np.random.default_rng(0)
    seen: dict[str, dict[str, list[str]]] = {}
    for role, n in ROLES.items():
        hashes = []
        for index in range(n):
            code = tiny.CODES[index % 3]
            path = tmp_path / "data" / code / f"{role}{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(tiny.colour(code) + rng.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(path), pixels)
            hashes.append(content_hash(path.read_bytes())[:HASH_CHARS])
        seen[role] = {"content_hashes": hashes, "lesion_ids": [], "isic_ids": []}
    # the colours are swapped by cv2, so RED and BLUE change places: a model that errs on them
    data = {"fingerprint": "0" * 64, "leaky": False, "unreadable": ["Jane_Doe/broken.jpg"]}
    folder = tiny.write(tmp_path / "b", seen=seen, data=data)
    hashes, wrong = seen["test"]["content_hashes"], np.zeros(ROLES["test"], np.int64)
    truth = np.array([load_bundle(folder).codes.index(tiny.CODES[index % 3]) for index in range(ROLES["test"])])
    before = AnswersOnTest(tuple(hashes), np.arange(ROLES["test"]), truth, wrong, truth, majority=0)
    tiny.add(folder, {BASELINES_FILE: before.arrays()})
    return folder, tmp_path / "data"


def test_facts_are_fitted_on_the_roles_of_the_bundle(made: tuple[Path, Path]) -> None:
    folder, data = made
    refit_facts(folder, read_dataset(data), QUIET)
    predictor = Predictor(folder)
    facts = predictor.bundle.card.trust
    assert facts.fitted_on["images"] == 60 and facts.fitted_on["training_images"] == 60
    assert facts.measured.role == "test" and facts.measured.images == 30 and facts.fitted_in_s >= 0
    assert "Fitted on 60 lesions" in (folder / "MODEL_CARD.md").read_text()
    assert predictor.bundle.card.metrics.case_mix == "equal" and predictor.bundle.card.metrics.n == 30
    assert predictor.bundle.lesions["calibrate"].counts(3).tolist() == [20, 20, 20]
    assert len(set(read_test_answers(predictor.bundle).model.tolist())) > 1, "the answers are those of the model now"
    answer = predictor.predict(tiny.colour("GREEN"))
    assert answer.prediction_set is not None and answer.novelty is not None
    assert facts.neighbours == {"lesions": 60}
    near = predictor.neighbours(answer, 3)
    assert [n.diagnosis for n in near] == ["GREEN"] * 3 and near[0].image.startswith("train")
    refit_facts(folder, read_dataset(data), QUIET, neighbours=False)
    bundle = Predictor(folder).bundle
    assert not bundle.has_examples and bundle.card.data.unreadable == ()


def test_other_data_are_refused_and_the_bundle_stays(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = made
    before = (folder / "bundle.json").read_bytes()
    other = tmp_path / "other"
    for code in ("RED", "GREEN"):
        (other / code).mkdir(parents=True)
        cv2.imwrite(str(other / code / "a.png"), tiny.colour(code))
    with pytest.raises(DataError, match="has 0 images that the model was trained on"):
        refit_facts(folder, read_dataset(other), QUIET)
    assert (folder / "bundle.json").read_bytes() == before


def test_the_commands_say_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    words = capsys.readouterr().out
    assert end.value.code == 0 and "fit-facts" in words and "train" in words


def test_a_folder_without_data_is_an_error_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit-facts", "default", "--data", str(tmp_path)]) == 2
    assert "Error: " in capsys.readouterr().err
