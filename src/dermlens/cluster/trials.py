"""Trials of a search on Ray: each worker trains one recipe at a time and knows nothing of the study.

The driver alone opens the study's SQLite file, which several machines could not share: a worker gets a recipe, says its
score after each epoch, is told whether to go on, and hands back the score of the trial. A trial whose worker dies is
begun again by another one.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from dermlens.cluster.crew import Board, Crew, Lost, as_here, connected, fetch, share, spare
from dermlens.errors import DermlensError, UsageError
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
        bench: Any, asked: Iterator[tuple[int, Recipe]], on_epoch: OnEpoch, stop: Callable[[], bool]
    ) -> Generator[tuple[int, Outcome], None, None]:
        with connected(address):
            size, cores, gpus = spare(workers, CORES)
            board = Board()
            made = (bench.material, bench.folds, os.path.abspath(bench.out), bench.embeddings)
            crew = Crew(_Worker, (board, os.getcwd(), cores), size, cores=cores, gpus=gpus, waiting=1)
            shared = share(made)
            units = ((shared, number, recipe) for number, recipe in asked)
            with closing(crew.run(units, stop)) as found:
                for item in found:
                    for number, (epoch, score) in board.heard():
                        if on_epoch(number, epoch, score):
                            board.end(number)
                    if item is not None:
                        (_, number, _), outcome = item
                        yield number, _outcome(outcome)

    return run


def _outcome(outcome: Any) -> Outcome:
    if isinstance(outcome, Lost):
        return Outcome("lost")
    if isinstance(outcome, Outcome):
        return outcome
    raise as_here(*outcome)


class _Ending(Exception):
    """The driver has seen enough of this trial."""


class _Worker:
    """A few cores or a GPU, and the material of the search."""

    def __init__(self, board: Board, working_folder: str, cores: int) -> None:
        self._board, self._working_folder, self._cores = board, working_folder, cores
        self._bench: Any = None

    def answer(self, shared: list[Any], number: int, recipe: Recipe) -> Outcome | tuple[str, dict[str, str]]:
        """Train as the recipe says; an error of dermlens comes back as a value."""
        begun = time.monotonic()

        def report(epoch: int, score: float) -> None:
            if self._board.say(number, (epoch, score)):
                raise _Ending

        how, score = "complete", None
        try:
            bench = self._bench = self._bench or self._start(fetch(shared), recipe)
            score = bench.score(replace(recipe, threads=self._cores), report)
        except _Ending:
            how = "pruned"
        except DermlensError as error:
            if error.code != "diverged":
                return type(error).__name__, error.as_dict()
            how = "diverged"
        return Outcome(how, score, time.monotonic() - begun)

    def _start(self, made: tuple[Any, ...], recipe: Recipe) -> Any:
        material, folds, out, embeddings = made
        if os.path.isdir(self._working_folder):
            os.chdir(self._working_folder)
        if not os.path.isdir(out):
            raise UsageError(
                f"The node {platform.node()} does not see {out}. All nodes need the same folders under the same names.",
                remedy="Use a shared file system.",
                code="not_shared",
            )
        from dermlens.networks.backend import load_tensorflow

        load_tensorflow()
        from rich.console import Console

        from dermlens.networks.backend import keep_freed_memory
        from dermlens.training.device import set_up
        from dermlens.tuning.trial import Bench

        quiet = Console(quiet=True)
        keep_freed_memory()
        set_up(replace(recipe, threads=self._cores), quiet)
        return Bench(material, folds, Path(out), quiet, embeddings=embeddings)

    def pid(self) -> int:
        """Return the number of the process."""
        return os.getpid()
