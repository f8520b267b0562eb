"""Controls: each artefact changes what it says and no more, is drawn alike each time, measured in pairs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import load_bundle
from dermlens.evaluation.controls import answer_changes, drawn_rows, run_controls, same
from dermlens.evaluation.overlays import ARTEFACTS, INK, WITHOUT_LESION
from pictures import lesion

QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return lesion(3, (224, 224))


@pytest.mark.parametrize("name", [*ARTEFACTS, *WITHOUT_LESION])
def test_each_changes_the_picture_the_same_way_each_time(name: str, picture: np.ndarray) -> None:
    change = {**ARTEFACTS, **WITHOUT_LESION}[name]
    before = picture.copy()
    for seed in range(8):
        change(picture, np.random.default_rng(seed))
    np.testing.assert_array_equal(picture, before)
    first, second = (change(picture, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == picture.shape and first.dtype == np.uint8 and not np.array_equal(first, picture)


@pytest.mark.parametrize(("name", "most"), [("ink marks", 0.12), ("ruler", 0.12), ("hair", 0.25)])
def test_what_is_drawn_leaves_most_of_the_picture_alone(name: str, most: float, picture: np.ndarray) -> None:
    changed = np.any(ARTEFACTS[name](picture, np.random.default_rng(0)) != picture, axis=2)
    assert 0.002 < changed.mean() < most


def test_ink_is_violet_and_stays_off_the_middle(picture: np.ndarray) -> None:
    inked = ARTEFACTS["ink marks"](picture, np.random.default_rng(0))
    changed = np.any(inked != picture, axis=2)
    assert not changed[70:154, 70:154].any()
    assert np.abs(inked[changed].mean(0) - INK).max() < 60


def test_dark_corners_are_dark_and_the_middle_is_as_it_was(picture: np.ndarray) -> None:
    dark = ARTEFACTS["dark corners"](picture, np.random.default_rng(0))
    assert dark[:8, :8].max() < 20
    np.testing.assert_array_equal(dark[80:144, 80:144], picture[80:144, 80:144])


def test_two_models_are_shown_the_same_artefacts(tmp_path: Path) -> None:
    bundle = load_bundle(tiny.write(tmp_path / "b"))
    rows = drawn_rows(40, 6, seed=1)
    assert len(set(rows.tolist())) == 6 and drawn_rows(5, 6, seed=1).tolist() == [0, 1, 2, 3, 4]
    shown: list[list[bytes]] = [[], []]
    for pictures in shown:

        def noted(image: np.ndarray, rng: np.random.Generator, pictures: list[bytes] = pictures) -> np.ndarray:
            drawn = ARTEFACTS["hair"](image, rng)
            pictures.append(drawn.tobytes())
            return drawn

        found = answer_changes(
            bundle, lambda row: lesion(row, (28, 28)), rows, {"it": same, "hair": noted}, seed=3, console=QUIET
        )
        assert found["it"][0].shape == (6, 3) and found["hair"][1].shape == (6,)
    assert shown[0] == shown[1] and len(set(shown[0])) == 6


def test_four_rotations_are_none(picture: np.ndarray) -> None:
    turned = picture
    for _ in range(4):
        turned = ARTEFACTS["rotation by 90 degrees"](turned, np.random.default_rng(0))
    np.testing.assert_array_equal(turned, picture)


def test_without_lesion_nothing_of_the_middle_is_left(picture: np.ndarray) -> None:
    erased, border = (WITHOUT_LESION[n](picture, np.random.default_rng(0)) for n in ("lesion erased", "border only"))
    assert erased[60:164, 60:164].std(axis=(0, 1)).max() == 0 and border[60:164, 60:164].std() == 0
    np.testing.assert_array_equal(border[:20], picture[:20])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A model that sees colours only, on plain colours with a frame of the same colour."""
    predictor = Predictor(tiny.write(tmp_path_factory.mktemp("m") / "b"))
    y = np.arange(30) % 3
    images = [tiny.colour(tiny.CODES[c], (tiny.SIZE_PX, tiny.SIZE_PX)) for c in y]
    return run_controls(predictor.bundle, images.__getitem__, y, np.arange(30), seed=0, console=QUIET)


def test_a_colour_model_is_blind_to_turns_and_reads_the_border(found: dict) -> None:
    turned = found["artefacts"]["rotation by 90 degrees"]
    assert turned["flip_rate"]["value"] == 0 and abs(turned["watched_change"]["value"]) < 1e-6
    erased = found["without_lesion"]["lesion erased"]
    assert erased["balanced_accuracy"]["value"] == 1.0 and erased["chance"] == pytest.approx(1 / 3)


def test_dark_corners_move_its_probabilities(found: dict) -> None:
    row = found["artefacts"]["dark corners"]
    assert row["watched_change_absolute"]["value"] > 0.005
    assert row["watched_change_absolute"]["low"] <= row["watched_change_absolute"]["value"]
    assert found["watched"] == ["BLUE"], "nothing malignant is known among the colours"


def test_no_more_images_than_asked_for(tmp_path: Path) -> None:
    predictor = Predictor(tiny.write(tmp_path / "b"))
    y = np.arange(30) % 3
    asked = []

    def load(row: int) -> np.ndarray:
        asked.append(row)
        return tiny.colour("RED", (tiny.SIZE_PX, tiny.SIZE_PX))

    found = run_controls(predictor.bundle, load, y, np.arange(30), seed=0, console=QUIET, most=10)
    assert found["images"] == 10 == len(set(asked))
