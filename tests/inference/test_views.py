"""Test-time views: eight different sides of one image, averaged as probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dermlens import Predictor
from dermlens.bundle.probabilities import probabilities
from dermlens.cli.app import app
from dermlens.data.images import load_image
from dermlens.errors import UsageError
from dermlens.inference.runtime import VIEWS, turned

EXAMPLE = Path(__file__).parents[2] / "examples" / "images" / "MEL_ISIC_0000029.jpg"


def test_the_eight_views_are_the_symmetries_of_a_square() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), np.uint8)

    views = [turned(picture, view) for view in range(8)]

    assert np.array_equal(views[0], picture)
    assert len({view.tobytes() for view in views}) == 8
    wanted = {
        np.ascontiguousarray(np.rot90(side, k, (1, 2))).tobytes()
        for side in (picture, picture[:, :, ::-1])
        for k in range(4)
    }
    assert {view.tobytes() for view in views} == wanted
    assert np.array_equal(turned(views[1], 1), picture), "view 1 is half a turn: twice gives the picture again"


@pytest.mark.parametrize("views", VIEWS[1:])
def test_probabilities_are_the_mean_over_the_views(views: int) -> None:
    one, many = Predictor(), Predictor(views=views)
    calibration = one.bundle.calibration
    pixels = load_image(EXAMPLE, one.bundle.input_spec)[None]
    logits = np.stack([one.predict(turned(pixels, view)[0]).logits for view in range(views)])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    answer = many.predict(EXAMPLE)

    wanted = probabilities(np.log(shares.mean(axis=0))[None], calibration, (1 / 8,) * 8)[0]
    given = [answer.probabilities[code] for code in one.bundle.codes]
    np.testing.assert_allclose(given, wanted, atol=1e-4)
    plain = one.predict(EXAMPLE)
    assert answer.novelty == plain.novelty, "novelty and heat map are those of the image as it is"
    assert answer.probabilities != plain.probabilities


def test_the_turned_image_gets_the_same_answer_with_all_views() -> None:
    predictor = Predictor(views=8)
    pixels = load_image(EXAMPLE, predictor.bundle.input_spec)

    plain, half_turn = predictor.predict(pixels), predictor.predict(turned(pixels[None], 1)[0])

    np.testing.assert_allclose(list(plain.probabilities.values()), list(half_turn.probabilities.values()), atol=1e-5)


def test_a_number_of_views_that_is_none_of_these_is_refused() -> None:
    with pytest.raises(UsageError, match="got 3") as caught:
        Predictor(views=3)
    assert "8" in caught.value.remedy


def test_predict_says_how_many_views_it_took_when_it_took_more_than_one() -> None:
    runner = CliRunner()

    plain = json.loads(runner.invoke(app, ["predict", str(EXAMPLE), "--json"]).stdout)
    many = json.loads(runner.invoke(app, ["predict", str(EXAMPLE), "--json", "--views", "4"]).stdout)

    assert many["views"] == 4
    assert "views" not in plain
