"""The recipe: every setting checked, unknown ones answered with the nearest names."""

from __future__ import annotations

from pathlib import Path

import pytest

from dermlens.errors import RecipeError
from dermlens.training.recipe import Recipe, make_recipe, parse_settings, read_recipe


def test_a_saved_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = make_recipe({"epochs": 3, "learning_rate": 1})
    recipe.save(tmp_path / "recipe.json")
    assert make_recipe(read_recipe(tmp_path / "recipe.json")) == recipe
    assert isinstance(recipe.learning_rate, float)


def test_toml_below_flags(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('epochs = 3\nbackbone = "b0"\n')
    base = make_recipe(read_recipe(tmp_path / "r.toml"))
    assert make_recipe({"epochs": 5}, base=base) == make_recipe({"epochs": 5, "backbone": "b0"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rat": 0.1}, "learning_rate"),
        ({"epochs": "many"}, "must be of type int"),
        ({"epochs": True}, "must be of type int"),
        ({"epochs": -1}, "Allowed is 0 to 1000"),
        ({"dropout": 2.0}, "Allowed is 0.0 to 0.9"),
        ({"framing": "stretch"}, "centre_crop, squash, pad"),
        ({"loss": "best"}, "focal"),
        ({"train": 0.9}, "add up to"),
    ],
)
def test_a_bad_setting_is_one_line_that_says_what_is_allowed(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        make_recipe(settings)
    assert "\n" not in str(caught.value)


def test_settings_from_the_command_line() -> None:
    assert parse_settings(["epochs=3", "framing=pad", "learning_rate = 1e-4"]) == {
        "epochs": 3,
        "framing": "pad",
        "learning_rate": 1e-4,
    }
    with pytest.raises(RecipeError, match="name=value"):
        parse_settings(["epochs"])


@pytest.mark.parametrize("text", ["epochs = = 3", "\x00"])
def test_a_damaged_recipe_file_is_a_recipe_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError):
        read_recipe(tmp_path / "r.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "missing.toml")


def test_the_four_shares_add_up() -> None:
    assert sum(Recipe().fractions.values()) == pytest.approx(1)
