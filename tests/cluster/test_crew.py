"""A crew ends when all is answered, and not before."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from dermlens.cluster.crew import Crew, plan_workers
from dermlens.errors import UsageError

pytestmark = pytest.mark.xdist_group("ray")


def workers(folder: str) -> type[Any]:
    """Return a class that Ray carries to its processes by value, since tests are no package there.

    The first one's answer waits until the second one has come up, and then as long as it takes to be given work.
    """

    class Worker:
        def __init__(self) -> None:
            open(f"{folder}/{os.getpid()}", "w").close()

        def answer(self, seconds: float) -> float:
            until = time.monotonic() + 120
            while len(os.listdir(folder)) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            if len(os.listdir(folder)) < 2:
                raise RuntimeError("the second worker never came up")
            time.sleep(seconds)
            return seconds

    return Worker


def test_a_worker_without_work_is_idle_once() -> None:
    crew: Any = Crew(Exception, (), 2)
    crew._work, worker = iter(()), object()
    crew._assign(worker)
    crew._assign(worker)
    assert crew._idle == [worker]


def test_a_worker_that_starts_late_does_not_end_the_work_of_another(two_nodes: str, tmp_path: Path) -> None:
    """One unit, two workers: the second finds nothing to do while the first is still at it."""
    found = [item for item in Crew(workers(str(tmp_path)), (), 2).run([(1.0,)]) if item is not None]
    assert found == [((1.0,), 1.0)] and len(list(tmp_path.iterdir())) == 2


def test_an_error_of_a_worker_arrives_as_it_was_raised(two_nodes: str) -> None:
    class Worker:
        def answer(self, code: str) -> None:
            raise UsageError("Wrong.", remedy="Correct it.", code=code)

    with pytest.raises(UsageError) as caught:
        list(Crew(Worker, (), 1).run([("odd",)]))
    assert type(caught.value) is UsageError
    assert caught.value.as_dict() == {"code": "odd", "message": "Wrong.", "remedy": "Correct it."}


def test_large_workers_share_the_cores_of_a_cluster(two_nodes: str) -> None:
    assert plan_workers(None, 4) == (1, 1, 0), "no worker is larger than a node"
    assert plan_workers(2, 4) == plan_workers(9, 1) == (2, 1, 0)
