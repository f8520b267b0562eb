"""How the trials of a search end, whoever tries them: this process one by one, or many side by side."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from dermlens.training.recipe import Recipe


@dataclass(frozen=True)
class Ended:
    """How a trial ended: one of WORDS, "complete" with its score, 0..1; `seconds` of work."""

    how: str
    score: float | None = None
    seconds: float = 0.0

    @property
    def words(self) -> str:
        """The end in words for a person."""
        return WORDS[self.how] if self.score is None else f"{self.score:.3f}"


WORDS = {
    "complete": "complete",
    "pruned": "ended early, below the median of the others",
    "diverged": "diverged",
    "lost": "ended every worker that tried it; it counts for nothing",
}

Heard = Callable[[int, int, float], bool]
"""Takes the number of a trial, an epoch and the score so far; says whether the trial shall end."""

Trials = Callable[
    [Any, Iterator[tuple[int, Recipe]], Heard, Callable[[], bool]], Generator[tuple[int, Ended], None, None]
]
"""Takes a `Bench`, numbered recipes, who hears of each epoch, and whether to stop; gives the ends as they come."""
