"""Trials side by side: the study goes on whatever happens to a worker, and knows the same as with one by one."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from dermlens.data.records import Dataset
from dermlens.errors import DermlensError
from dermlens.training.recipe import Recipe, make_recipe, read_recipe
from dermlens.tuning import tune as tune_module
from dermlens.tuning.trial import Bench, OnEpoch, Outcome, Trials
from dermlens.tuning.tune import BEST, TABLE, Limits, tune

GIVEN: dict[str, Any] = {
    "fine_tune": "head",
    "size_px": 32,
    "head_epochs": 3,
    "batch_size": 16,
    "train": 0.4,
    "select": 0.2,
    "calibrate": 0.2,
    "test": 0.2,
}
Found = Generator[tuple[int, Outcome], None, None]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Put stand-ins for the network; yields the cuts that were prepared."""
    cuts: list[int] = []
    monkeypatch.setattr(Bench, "prepare", lambda bench, recipe: cuts.append(recipe.cut_block))
    monkeypatch.setattr(Bench, "score", lambda bench, recipe, report: 1 - recipe.dropout)
    monkeypatch.setattr(tune_module, "open_backbone", lambda recipe: SimpleNamespace(weights="lite", weights_id="w"))
    monkeypatch.setattr(tune_module, "_choose_batch", lambda study, recipe, *rest: recipe)
    return cuts


def search(data: Dataset, out: Path, trials: int, parallel: Trials | None, **more: Any) -> tuple[bool, str]:
    told, given = io.StringIO(), {**GIVEN, **more.pop("given", {})}
    console, limits = Console(file=told, width=300), Limits(trials, folds=2, **more)
    whole = tune(data, out, make_recipe(given), given, limits, console=console, parallel=parallel)
    return whole, told.getvalue()


def states(out: Path) -> list[str]:
    return [line.split(",")[1] for line in (out / TABLE).read_text().splitlines()[1:]]


def by_dropout(dies: Callable[[int], bool] = lambda number: False) -> Trials:
    """Two trials at a time, in step; less dropout is better. `dies` names the trials whose workers die."""

    def run(bench: Any, asked: Iterator[tuple[int, Recipe]], on_epoch: OnEpoch, stop: Callable[[], bool]) -> Found:
        while not stop() and (pair := list(islice(asked, 2))):
            for number, recipe in pair:
                if dies(number):
                    yield number, Outcome("lost")
                elif any(on_epoch(number, epoch, (1 - recipe.dropout) * (epoch + 1) / 4) for epoch in range(4)):
                    yield number, Outcome("pruned", None, 0.1)
                else:
                    yield number, Outcome("complete", 1 - recipe.dropout, 0.2)

    return run


def test_trials_side_by_side_end_early_and_either_way_goes_on(
    data: Dataset, tmp_path: Path, no_network: list[int]
) -> None:
    assert search(data, tmp_path, 10, by_dropout())[0]
    assert len(states(tmp_path)) == 10 and {"complete", "pruned"} == set(states(tmp_path))
    assert make_recipe(read_recipe(tmp_path / BEST)).dropout <= Recipe().dropout
    whole, told = search(data, tmp_path, 12, None)
    assert whole and len(states(tmp_path)) == 12 and "Continuing after 10 trials" in told


def test_every_cut_is_prepared_before_the_workers_start(data: Dataset, tmp_path: Path, no_network: list[int]) -> None:
    search(data, tmp_path, 2, by_dropout(), given={"fine_tune": "top", "views": 1, "epochs": 2})
    assert len(no_network) == len(set(no_network)) == 3
    no_network.clear()
    search(data, tmp_path, 2, by_dropout(), given={"fine_tune": "top", "views": 1, "epochs": 2})
    assert no_network == [], "nothing is left to do"


def test_a_trial_that_ends_every_worker_counts_for_nothing(
    data: Dataset, tmp_path: Path, no_network: list[int]
) -> None:
    told = search(data, tmp_path, 4, by_dropout(lambda number: number == 1))[1]
    assert sorted(states(tmp_path)).count("fail") == 1 and len(states(tmp_path)) == 5
    assert "Trial 1: ended every worker" in told
    with pytest.raises(DermlensError, match="Every trial ended its worker, 2 in all"):
        search(data, tmp_path, 6, by_dropout(lambda number: True))


def test_time_that_is_over_leaves_no_trial_open(data: Dataset, tmp_path: Path, no_network: list[int]) -> None:
    def slow(bench: Any, asked: Iterator[tuple[int, Recipe]], on_epoch: OnEpoch, stop: Callable[[], bool]) -> Found:
        next(asked)
        number, _ = next(asked)
        yield number, Outcome("complete", 0.5)
        search_ends.append(stop())

    search_ends: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune_module._Search, "late", lambda search: len(search.ended()) > 0)
        assert search(data, tmp_path, 4, slow, timeout_s=1.0)[0]
    assert search_ends == [True] and states(tmp_path) == ["fail", "complete"]


@pytest.mark.long
def test_a_killed_worker_of_a_cluster_is_survived(data: Dataset, tmp_path: Path) -> None:
    from dermlens.cluster.trials import ray_trials
    from ray_nodes import cluster_of_two, workers

    killed: list[int] = []
    with cluster_of_two() as (cluster, _):

        def run(bench: Any, asked: Iterator[tuple[int, Recipe]], on_epoch: OnEpoch, stop: Callable[[], bool]) -> Found:
            def kill_one(number: int, epoch: int, score: float) -> bool:
                if not killed:
                    victim = workers()[0]
                    killed.append(victim.pid)
                    victim.kill()
                return on_epoch(number, epoch, score)

            yield from ray_trials(cluster.address, 2)(bench, asked, kill_one, stop)

        whole, told = search(data, tmp_path, 2, run)
    assert whole and killed and states(tmp_path) == ["complete", "complete"], told
    assert make_recipe(read_recipe(tmp_path / BEST)).fine_tune == "head"
