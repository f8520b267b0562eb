"""Progress of long work: a live bar on a terminal, a line every half minute in a log; always rate and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_EVERY_S = 30.0

Advance = Callable[[int], None]


@contextmanager
def track(what: str, total: int, console: Console, *, unit: str = "images") -> Iterator[Advance]:
    """Show progress of `total` steps of work; the yielded function is called with the number of steps done."""
    if not console.is_terminal:
        yield _logged(what, total, console, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(what, total=total, rate="")
        start = time.monotonic()

        def advance(steps: int) -> None:
            progress.advance(task, steps)
            rate = progress.tasks[0].completed / max(1e-9, time.monotonic() - start)
            progress.update(task, rate=f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s")

        yield advance


def _logged(what: str, total: int, console: Console, unit: str) -> Advance:
    start = time.monotonic()
    state = {"done": 0, "printed": start}

    def advance(steps: int) -> None:
        state["done"] += steps
        now = time.monotonic()
        finished = state["done"] >= total > state["done"] - steps
        if now - state["printed"] < LOG_EVERY_S and not finished:
            return
        state["printed"] = now
        rate = state["done"] / max(1e-9, now - start)
        left_s = (total - state["done"]) / max(1e-9, rate)
        console.print(f"{what}: {state['done']:.0f} of {total} ({rate:.1f} {unit}/s, {left_s / 60:.1f} min left)")

    return advance
