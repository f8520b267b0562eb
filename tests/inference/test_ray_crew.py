"""A crew ends when all is answered, and not before."""

from __future__ import annotations

import os
import time
from typing import Any

from dermlens.inference.ray_crew import Crew, connected


def slow_worker() -> type[Any]:
    """Return a class that Ray carries to its processes by value, since tests are no package there."""

    class Slow:
        def answer(self, seconds: float) -> float:
            time.sleep(seconds)
            return seconds

        def pid(self) -> int:
            return os.getpid()

    return Slow


def test_a_worker_without_work_is_idle_once() -> None:
    crew: Any = Crew(object, (), 2)
    crew._work, worker = iter(()), object()
    crew._give(worker)
    crew._give(worker)
    assert crew._idle == [worker]


def test_a_worker_that_comes_up_late_ends_nobody_elses_work() -> None:
    """One unit, two workers: the second finds nothing to do while the first is still at it."""
    with connected(None, 2):
        found = [item for item in Crew(slow_worker(), (), 2).run([(20.0,)]) if item is not None]
    assert found == [((20.0,), 20.0)]
