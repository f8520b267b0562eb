"""The search: goes on, keeps what is there, ends early, writes a recipe that trains, and never looks at the test."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from rich.console import Console

import networks
from dermlens.data.records import Dataset
from dermlens.errors import RecipeError, UsageError, WeightsError
from dermlens.training import device
from dermlens.training.material import Material
from dermlens.training.recipe import Recipe, make_recipe, read_recipe
from dermlens.tuning import trial as trial_module
from dermlens.tuning import tune as tune_module
from dermlens.tuning.trial import Bench, Interrupted, train_and_select
from dermlens.tuning.tune import BEST, TABLE, Limits, tune

Score = Callable[[Bench, Recipe, Callable[[int, float], None]], float]
GIVEN: dict[str, Any] = {
    "fine_tune": "head",
    "size_px": 64,
    "head_epochs": 3,
    "batch_size": 16,
    "train": 0.4,
    "select": 0.2,
    "calibrate": 0.2,
    "test": 0.2,
}


def search(
    data: Dataset,
    out: Path,
    trials: int,
    *,
    given: dict[str, Any] | None = None,
    reading: Sequence[str] = (),
    **limits: Any,
) -> tuple[bool, str]:
    told, given = io.StringIO(), given or GIVEN
    console = Console(file=told, width=300)
    whole = tune(data, out, make_recipe(given), given, Limits(trials, **limits), reading=reading, console=console)
    return whole, told.getvalue()


def table(out: Path) -> list[dict[str, str]]:
    with (out / TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def by_dropout(bench: Bench, recipe: Recipe, report: Callable[[int, float], None]) -> float:
    """Stand in for a training: less dropout is better, one epoch after the other."""
    for epoch in range(4):
        report(epoch, (1 - recipe.dropout) * (epoch + 1) / 4)
    return 1 - recipe.dropout


def scored(monkeypatch: pytest.MonkeyPatch, score: Score) -> None:
    """Put a stand-in for the training, and a tiny network, which is not trained."""
    monkeypatch.setattr(Bench, "score", score)
    monkeypatch.setattr(tune_module, "open_backbone", networks.tiny_stem)


def test_a_real_trial_learns_from_train_and_select_alone(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the other roles are gone before the first trial; the network is a tiny one."""
    hidden: list[Path] = []

    def without_the_rest(material: Material) -> Material:
        hidden.extend(r.path for r, role in zip(material.records, material.roles, strict=True) if role not in LEARNED)
        for path in hidden:
            path.rename(path.with_suffix(".hidden"))
        return train_and_select(material)

    for module in (tune_module, trial_module):
        monkeypatch.setattr(module, "open_backbone", networks.tiny_stem)
    monkeypatch.setattr(tune_module, "train_and_select", without_the_rest)
    try:
        whole, told = search(data, tmp_path / "out", 1, folds=2)
    finally:
        for path in hidden:
            path.with_suffix(".hidden").rename(path)
    assert whole and len(hidden) == 8 and "on the 12 train and select images" in told
    (row,) = table(tmp_path / "out")
    assert row["state"] == "complete" and row["epochs"] == "8" and 0.5 <= float(row["balanced_accuracy"]) <= 1


LEARNED = ("train", "select")


def test_the_same_command_goes_on_and_leaves_a_recipe(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, by_dropout)
    out = tmp_path / "out"
    assert search(data, out, 3)[0] and len(table(out)) == 3
    first = table(out)[0]
    assert float(first["dropout"]) == Recipe().dropout, "the first trial is the recipe as it is"
    whole, told = search(data, out, 12)
    rows = table(out)
    assert whole and len(rows) == 12 and rows[0] == first and "Continuing after 3 trials" in told
    assert "pruned" in {row["state"] for row in rows}, "hopeless trials end early"
    recipe = make_recipe(read_recipe(out / BEST))
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: float(row["balanced_accuracy"]))
    assert recipe.dropout == pytest.approx(float(best["dropout"]))
    assert {name: getattr(recipe, name) for name in GIVEN} == GIVEN
    assert search(data, out, 12)[0] and len(table(out)) == 12, "nothing is left to do"


def test_ctrl_c_keeps_what_is_there(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def interrupted(bench: Bench, recipe: Recipe, report: Callable[[int, float], None]) -> float:
        calls.append(recipe.dropout)
        if len(calls) in (3, 5):
            raise Interrupted if len(calls) == 3 else KeyboardInterrupt
        return 0.5

    scored(monkeypatch, interrupted)
    for done in (2, 3):
        whole, told = search(data, tmp_path / "out", 5)
        states = [row["state"] for row in table(tmp_path / "out")]
        assert not whole and states.count("complete") == done and "Stopped." in told and "continues" in told
    assert search(data, tmp_path / "out", 5)[0]
    assert [row["state"] for row in table(tmp_path / "out")].count("complete") == 5


def test_a_trial_of_a_killed_process_does_not_count(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, by_dropout)
    out = tmp_path / "out"
    search(data, out, 1)
    optuna.load_study(study_name="dermlens", storage=f"sqlite:///{out / 'study.db'}").ask()
    assert search(data, out, 2)[0]
    assert [row["state"] for row in table(out)] == ["complete", "fail", "complete"]


def test_time_is_kept_and_a_diverged_trial_is_only_noted(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, by_dropout)
    assert search(data, tmp_path / "none", 5, timeout_s=0.0)[0]
    assert not (tmp_path / "none" / BEST).exists()

    def diverged(bench: Bench, recipe: Recipe, report: Callable[[int, float], None]) -> float:
        raise WeightsError("The loss is nan.", remedy="Lower it.", code="diverged")

    scored(monkeypatch, diverged)
    told = search(data, tmp_path / "out", 2)[1]
    assert told.count("diverged") == 2 and not (tmp_path / "out" / BEST).exists()


def test_a_timeout_in_the_midst_of_a_trial_is_no_stop(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long(bench: Bench, recipe: Recipe, report: Callable[[int, float], None]) -> float:
        report(0, 0.5)
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 7200)
        monkeypatch.setattr(tune_module, "time", clock)
        report(1, 0.6)
        raise AssertionError("the second report ends the trial")

    scored(monkeypatch, long)
    whole, told = search(data, tmp_path, 5, timeout_s=3600.0)
    assert whole and "Stopped." not in told and "continues" in told
    assert [row["state"] for row in table(tmp_path)] == ["fail"]


def test_another_search_is_not_mixed_in(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, by_dropout)
    search(data, tmp_path, 1)
    fewer = replace(data, records=data.records[1:])
    for changed, given, folds in ((fewer, GIVEN, 3), (data, {**GIVEN, "seed": 1}, 3), (data, GIVEN, 2)):
        with pytest.raises(UsageError, match="holds a search over other"):
            search(changed, tmp_path, 2, given=given, folds=folds)


def test_files_of_no_search_are_not_overwritten(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, by_dropout)
    for name in (BEST, TABLE):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("mine\n")
        with pytest.raises(UsageError, match="already exists"):
            search(data, out, 1)
        assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == "mine\n"


def test_the_recipe_holds_the_split_of_the_search(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where nobody gave it: `train` with another split would test on images that the search looked at."""
    scored(monkeypatch, by_dropout)
    given = {name: GIVEN[name] for name in ("fine_tune", "size_px")}
    search(data, tmp_path / "plain", 1, given=given)
    written, default = read_recipe(tmp_path / "plain" / BEST), Recipe()
    assert {name: written[name] for name in default.fractions} == default.fractions and written["seed"] == default.seed
    search(data, tmp_path / "seeded", 1, given={**GIVEN, "seed": 7})
    written = read_recipe(tmp_path / "seeded" / BEST)
    assert written["seed"] == 7 and {name: written[name] for name in default.fractions} == make_recipe(GIVEN).fractions


def test_without_a_batch_size_one_is_fitted_once_and_left_in_the_recipe(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest cut decides, the same command keeps the batch, and the recipe makes `train` use it."""
    scored(monkeypatch, by_dropout)
    given = {**{name: value for name, value in GIVEN.items() if name != "batch_size"}, "fine_tune": "top"}
    cuts: list[int] = []
    monkeypatch.setattr(tune_module, "open_backbone", lambda r: cuts.append(r.cut_block) or networks.tiny_stem(r))
    monkeypatch.setattr(device, "fixed_bytes", lambda model: 1000)
    monkeypatch.setattr(device, "bytes_per_image", lambda model: 100)
    monkeypatch.setattr(device, "free_bytes", lambda: 1000 + 100 * 21)
    told = search(data, tmp_path, 1, given=given)[1]
    assert "batch_size is 16: the largest multiple of 8" in told and cuts == [7, 4]
    assert read_recipe(tmp_path / BEST)["batch_size"] == 16
    monkeypatch.setattr(device, "free_bytes", lambda: 10**9)
    told = search(data, tmp_path, 2, given=given)[1]
    assert (
        "batch_size is" not in told and read_recipe(tmp_path / BEST)["batch_size"] == 16 and len(table(tmp_path)) == 2
    )
    monkeypatch.setattr(device, "free_bytes", lambda: 1000)
    with pytest.raises(RecipeError, match=r"batch_size 16 needs about .*"):
        search(data, tmp_path, 3, given=given)


def test_the_hint_names_how_the_data_was_read(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, by_dropout)
    reading = ["--images", "my pictures", "--task", "isic2019"]
    told = search(data, tmp_path, 1, reading=reading)[1]
    assert f"--recipe {tmp_path / BEST} --images 'my pictures' --task isic2019\n" in told


@pytest.mark.long
def test_the_upper_blocks_are_searched_over_one_cache_for_each_cut(data: Dataset, tmp_path: Path) -> None:
    given = {**GIVEN, "fine_tune": "top", "views": 1, "epochs": 2}
    assert search(data, tmp_path, 3, given=given, folds=2)[0]
    rows = table(tmp_path)
    caches = {path.name for path in (tmp_path / "cache").iterdir()}
    assert caches == {f"cut-{row['cut_block']}" for row in rows}
    assert make_recipe(read_recipe(tmp_path / BEST)).fine_tune == "top"
