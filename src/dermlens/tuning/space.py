"""What a search over recipes varies: the settings that matter for small, unbalanced sets of skin images.

Settings that the user gives are fixed and not varied. Sizes, shares of the split, seed, epochs and backbone are
never varied: they change what is measured, or what it costs, not how well the same network learns.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dermlens.errors import RecipeError
from dermlens.networks.family import Backbone
from dermlens.training.recipe import Recipe

CUT_STEP = 3  # blocks between the cuts that are tried
_NEVER = ("epochs", "seed", "train", "select", "calibrate", "test")


@dataclass(frozen=True)
class Range:
    """One setting: numbers from `low` to `high`, in logarithm or in steps, or one of `choices`."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[int, ...] = ()

    def suggest(self, trial: Any, name: str) -> float | int:
        """Ask an Optuna trial for a value, rounded to three significant digits so that the recipe stays readable."""
        if self.choices:
            return int(trial.suggest_categorical(name, list(self.choices)))
        value = trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)
        return float(f"{value:.3g}")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step}


_BLOCKS = {
    "learning_rate": Range(3e-5, 1e-3, log=True),
    "layer_decay": Range(0.6, 1.0, step=0.05),
    "mixup": Range(0.0, 0.4, step=0.1),
}
_ALWAYS = {
    "class_balance": Range(0.0, 1.0, step=0.1),
    "dropout": Range(0.0, 0.6, step=0.1),
    "label_smoothing": Range(0.0, 0.15, step=0.05),
}
_HEAD = {"head_learning_rate": Range(3e-4, 3e-2, log=True), "weight_decay": Range(1e-4, 0.3, log=True)}


def space(recipe: Recipe, row: Backbone, fixed: Collection[str]) -> dict[str, Range]:
    """Return the settings to vary for a resolved recipe, by name.

    Args:
        recipe: `fine_tune` and `cut_block` are concrete.
        fixed: settings that a person gave.

    Raises:
        RecipeError: nothing is left to vary.
    """
    found = {**(_HEAD if recipe.fine_tune == "head" else _BLOCKS), **_ALWAYS}
    if recipe.fine_tune == "top":
        around = {recipe.cut_block + step for step in (-CUT_STEP, 0, CUT_STEP)}  # one trains more, one less
        found["cut_block"] = Range(choices=tuple(sorted(cut for cut in around if 1 <= cut < row.blocks)))
    if recipe.logit_adjustment > 0:
        found.pop("class_balance")  # the two are alternatives
    left = {name: values for name, values in found.items() if name not in fixed and name not in _NEVER}
    if not left:
        raise RecipeError(
            f"Every setting of the search is fixed: {', '.join(sorted(found))}.",
            remedy="Leave one of them out of --recipe and --set.",
            code="nothing_to_tune",
        )
    return left


def defaults(recipe: Recipe, varied: dict[str, Range]) -> dict[str, float | int]:
    """Return the recipe's own values of what is varied: the first trial, which all others have to beat."""
    return {name: _within(getattr(recipe, name), values) for name, values in varied.items()}


def _within(value: float, values: Range) -> float | int:
    if values.choices:
        return int(value)
    inside = min(max(value, values.low), values.high)
    if values.step is None:
        return inside
    return round(values.low + values.step * round((inside - values.low) / values.step), 6)
