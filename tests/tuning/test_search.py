"""What a search varies: sensible ranges that the recipe allows, and nothing that a person has fixed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dermlens.errors import RecipeError
from dermlens.networks.family import backbone
from dermlens.training.recipe import Recipe
from dermlens.tuning.space import defaults, space

ROW = backbone("lite0")
TOP = Recipe(fine_tune="top", cut_block=7)


def test_the_space_follows_the_mode() -> None:
    assert set(space(TOP, ROW, ())) >= {"learning_rate", "layer_decay", "cut_block", "mixup", "class_balance"}
    assert space(TOP, ROW, ())["cut_block"].choices == (4, 7, 10)
    assert "cut_block" not in space(replace(TOP, fine_tune="full", cut_block=0), ROW, ())
    head = space(replace(TOP, fine_tune="head", cut_block=16), ROW, ())
    assert "head_learning_rate" in head and "learning_rate" not in head and "mixup" not in head


def test_cuts_stay_within_the_network() -> None:
    assert space(replace(TOP, cut_block=2), ROW, ())["cut_block"].choices == (2, 5)
    assert space(replace(TOP, cut_block=15), ROW, ())["cut_block"].choices == (12, 15)


def test_what_is_given_is_fixed() -> None:
    assert set(space(TOP, ROW, ("dropout", "cut_block"))) == set(space(TOP, ROW, ())) - {"dropout", "cut_block"}
    assert "class_balance" not in space(replace(TOP, logit_adjustment=1.0, class_balance=0.0), ROW, ())
    with pytest.raises(RecipeError, match="is fixed"):
        space(TOP, ROW, tuple(space(TOP, ROW, ())))


@pytest.mark.parametrize("mode", ["head", "top", "full"])
def test_every_end_of_every_range_is_a_recipe(mode: str) -> None:
    recipe = replace(TOP, fine_tune=mode)
    for name, values in space(recipe, ROW, ()).items():
        for value in values.choices or (values.low, values.high):
            assert getattr(replace(recipe, **{name: value}), name) == value


def test_the_recipe_as_it_is_lies_in_the_space() -> None:
    varied = space(TOP, ROW, ())
    own = defaults(TOP, varied)
    assert own == {name: getattr(TOP, name) for name in varied}
    outside = defaults(replace(TOP, learning_rate=0.5, dropout=0.33), varied)
    assert outside["learning_rate"] == varied["learning_rate"].high and outside["dropout"] == pytest.approx(0.3)
