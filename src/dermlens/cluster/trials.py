"""Trials of a search on Ray: each worker trains one recipe at a time and knows nothing of the study.

The driver alone opens the study's SQLite file, which several machines could not share. A worker gets a recipe, posts
its score after each epoch, learns whether to continue, and returns the score of the trial. When a worker dies, another
one starts its trial again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from dermlens.cluster.crew import Board, Crew, WorkerDied, connected, enter, fetch, plan_workers, share
from dermlens.errors import DermlensError
from dermlens.training.recipe import Recipe
from dermlens.tuning.trial import OnEpoch, Outcome, Trials

CORES = 4  # of a trial, where the cluster has as many


def ray_trials(address: str | None = None, workers: int | None = None) -> Trials:
    """Return a function that tries recipes side by side.

    Args:
        address: of a running cluster ("auto", "host:6379"); a local one is started when None.
        workers: trials at a time; by default one for each GPU, or each four cores. Every node needs dermlens with the
            extras `tune` and `scale`, and must reach the images and the folder of the search under the same names.
    """

    def run(
        bench: Any, recipes: Iterator[tuple[int, Recipe]], on_epoch: OnEpoch, stop: Callable[[], bool]
    ) -> Generator[tuple[int, Outcome], None, None]:
        with connected(address):
            size, cores, gpus = plan_workers(workers, CORES)
            board = Board()
            crew = Crew(_Worker, (board, os.getcwd(), cores), size, cores=cores, gpus=gpus, waiting=1)
            shared = share((bench.material, bench.folds, os.path.abspath(bench.out), bench.embeddings))
            units = ((shared, number, recipe) for number, recipe in recipes)
            with closing(crew.run(units, stop)) as results:
                for item in results:
                    for number, (epoch, score) in board.read():
                        if on_epoch(number, epoch, score):
                            board.stop(number)
                    if item is not None:
                        (_, number, _), result = item
                        yield number, Outcome("lost") if isinstance(result, WorkerDied) else result

    return run


class _Stopped(Exception):
    """The driver does not need more epochs of this trial."""


class _Worker:
    """A few cores or a GPU, and the material of the search."""

    def __init__(self, board: Board, working_folder: str, cores: int) -> None:
        self._board, self._working_folder, self._cores = board, working_folder, cores
        self._bench: Any = None

    def answer(self, shared: list[Any], number: int, recipe: Recipe) -> Outcome:
        """Train as the recipe says."""
        begun = time.monotonic()

        def report(epoch: int, score: float) -> None:
            if self._board.post(number, (epoch, score)):
                raise _Stopped

        how, score = "complete", None
        try:
            bench = self._bench = self._bench or self._start(fetch(shared), recipe)
            score = bench.score(replace(recipe, threads=self._cores), report)
        except _Stopped:
            how = "pruned"
        except DermlensError as error:
            if error.code != "diverged":
                raise
            how = "diverged"
        return Outcome(how, score, time.monotonic() - begun)

    def _start(self, shared: tuple[Any, ...], recipe: Recipe) -> Any:
        material, folds, out, embeddings = shared
        enter(self._working_folder, out)
        from dermlens.networks.backend import load_tensorflow

        load_tensorflow()
        from rich.console import Console

        from dermlens.training.device import set_up
        from dermlens.tuning.trial import Bench

        quiet = Console(quiet=True)
        set_up(replace(recipe, threads=self._cores), quiet)
        return Bench(material, folds, Path(out), quiet, embeddings=embeddings)
