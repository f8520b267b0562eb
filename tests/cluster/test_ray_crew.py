"""A crew ends when all is answered, and not before."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from dermlens.cluster.crew import Crew, connected


def workers(folder: str) -> type[Any]:
    """Return a class that Ray carries to its processes by value, since tests are no package there.

    The first one's answer waits until the second one has come up, and then as long as it takes to be given work.
    """

    class Worker:
        def answer(self, seconds: float) -> float:
            until = time.monotonic() + 120
            while len(os.listdir(folder)) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            if len(os.listdir(folder)) < 2:
                raise RuntimeError("the second worker never came up")
            time.sleep(seconds)
            return seconds

        def pid(self) -> int:
            with open(f"{folder}/{os.getpid()}", "w"):
                return os.getpid()

    return Worker


def test_a_worker_without_work_is_idle_once() -> None:
    crew: Any = Crew(object, (), 2)
    crew._work, worker = iter(()), object()
    crew._give(worker)
    crew._give(worker)
    assert crew._idle == [worker]


def test_a_worker_that_comes_up_late_ends_nobody_elses_work(tmp_path: Path) -> None:
    """One unit, two workers: the second finds nothing to do while the first is still at it."""
    with connected(None, 2):
        found = [item for item in Crew(workers(str(tmp_path)), (), 2).run([(3.0,)]) if item is not None]
    assert found == [((3.0,), 3.0)] and len(list(tmp_path.iterdir())) == 2
