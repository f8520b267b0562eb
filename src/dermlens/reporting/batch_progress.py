"""Progress of a batch: rows, failures, images/s and time left, where the number of images may not be known before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

LOG_EVERY_S = 30.0
SHOW_EVERY_S = 0.2

Advance = Callable[[int, int, float], None]


@dataclass
class _Count:
    """Rows and weight done by this run; `done_before` and `total` are weights too."""

    total: float
    done_before: float
    weight: float = 0.0
    rows: int = 0
    errors: int = 0
    begun: float = field(default_factory=lambda: time.monotonic())

    def add(self, rows: int, errors: int, weight: float) -> None:
        self.rows += rows
        self.errors += errors
        self.weight += weight

    @property
    def share(self) -> float:
        return min(1.0, (self.done_before + self.weight) / max(self.total, 1e-9))

    def text(self) -> str:
        """Return what a person wants to know, in one line."""
        passed_s = max(1e-9, time.monotonic() - self.begun)
        rate = self.rows / passed_s
        left = max(0.0, self.total - self.done_before - self.weight)
        failed = f", {self.errors:,} failed" if self.errors else ""
        left_s = left * passed_s / self.weight if self.weight else None
        left_text = "" if left_s is None else f", {_duration(left_s)} left"
        return f"{self.rows:,} images{failed}, {rate:.0f} images/s{left_text}"


@contextmanager
def track_batch(total: float, done_before: float, console: Console) -> Iterator[Advance]:
    """Show progress; the yielded function is called with rows, errors among them, and their weight.

    A live bar on a terminal, a line every half minute elsewhere.

    Args:
        total, done_before: weight of everything and of what an earlier run did, about a number of images.
    """
    count = _Count(total, done_before)
    if not console.is_terminal:
        yield _logged(count, console)
        return
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0)
        bar.update(task, completed=count.share)
        shown = 0.0

        def advance(rows: int, errors: int, weight: float) -> None:
            nonlocal shown
            count.add(rows, errors, weight)
            if time.monotonic() - shown > SHOW_EVERY_S:
                shown = time.monotonic()
                bar.update(task, completed=count.share, description=count.text())

        yield advance
        bar.update(task, completed=count.share, description=count.text())


def _logged(count: _Count, console: Console) -> Advance:
    told = count.begun

    def advance(rows: int, errors: int, weight: float) -> None:
        nonlocal told
        count.add(rows, errors, weight)
        if time.monotonic() - told >= LOG_EVERY_S:
            told = time.monotonic()
            console.print(f"Batch: {count.share:.1%}, {count.text()}", highlight=False)

    return advance


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
