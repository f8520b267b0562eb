"""Explanations: exact, class by class, in the right place, from the pass that gave the answer."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny
from dermlens import Predictor
from dermlens.errors import ImageError, StorageError, UsageError
from dermlens.inference.explain import HeatmapFolder, relevance_of


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(tiny.write(tmp_path_factory.mktemp("model") / "b"))


def spot(code: str = "RED", at: tuple[int, int] = (0, 0)) -> np.ndarray:
    """A black picture with one bright square of 8 x 8 pixels."""
    image = np.zeros((tiny.SIZE_PX, tiny.SIZE_PX, 3), np.uint8)
    image[at[0] : at[0] + 8, at[1] : at[1] + 8] = tiny.colour(code)[0, 0]
    return image


def test_mean_of_the_map_plus_bias_is_the_logit_for_every_class(predictor: Predictor) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for index, code in enumerate(tiny.CODES):
        found = predictor.explain(image, code)
        assert found.code == code and found.map.dtype == np.float32 and found.map.shape == (7, 7)
        assert found.prediction.logits is not None
        assert found.logit == pytest.approx(float(found.prediction.logits[index]), abs=1e-4)
        assert float(found.map.mean()) + found.bias == pytest.approx(found.logit, abs=1e-5)


def test_the_map_points_to_where_the_class_is(predictor: Predictor) -> None:
    image = spot("RED", (0, 0))
    image[20:28, 20:28] = tiny.colour("GREEN")[0, 0]
    red, green = predictor.explain(image, "RED"), predictor.explain(image, "GREEN")
    assert red.relevance[2, 2] == pytest.approx(1, abs=0.1) and red.relevance[24, 24] < 0.2
    assert green.relevance[24, 24] == pytest.approx(1, abs=0.1) and green.relevance[2, 2] < 0.2
    overlay = red.overlay()
    assert overlay.shape == image.shape and overlay.dtype == np.uint8
    assert not np.array_equal(overlay[:8, :8], red.image[:8, :8])
    np.testing.assert_array_equal(red.overlay(alpha=0.0), red.image)


def test_the_diagnosis_is_explained_and_the_answer_is_that_of_predict(predictor: Predictor) -> None:
    found = predictor.explain(tiny.colour("GREEN"))
    assert found.code == found.prediction.diagnosis_code == "GREEN"
    assert found.prediction.probabilities == predictor.predict(tiny.colour("GREEN")).probabilities
    shown = cv2.imdecode(np.frombuffer(found.as_png(), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(shown, found.overlay())


def test_nothing_for_a_class_is_no_relevance() -> None:
    assert relevance_of(-np.ones((7, 7), np.float32), (20, 30)).max() == 0.0
    values = relevance_of(np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32), (20, 30))
    assert values.shape == (20, 30) and values.min() >= 0 and values.max() <= 1


def test_an_unknown_class_and_a_bad_image_say_so(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no class 'PINK'"):
        predictor.explain(tiny.colour("RED"), "PINK")
    with pytest.raises(ImageError, match="does not exist"):
        predictor.explain(tmp_path / "missing.png")


def test_many_keep_their_order_and_a_bad_image_has_no_map(predictor: Predictor, tmp_path: Path) -> None:
    codes = [tiny.CODES[i % 3] for i in range(20)]
    images: list[object] = [tiny.colour(code) for code in codes]
    images[4] = tmp_path / "missing.png"
    found = list(predictor.explain_many(images))  # type: ignore[arg-type]
    assert [e.code if e else None for _, e in found] == [None if i == 4 else code for i, code in enumerate(codes)]
    assert found[4][0].status == "error"


def test_images_of_one_name_get_a_heat_map_each(predictor: Predictor, tmp_path: Path) -> None:
    folder = HeatmapFolder(tmp_path / "maps")
    first, second = (folder.write(predictor.explain(tiny.colour("RED"), name=f"{n}/a.png")) for n in "xy")
    assert first.name == "a_RED.png" and second.name == "a_RED_2.png" and second.is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        HeatmapFolder(tmp_path / "file")
