"""A Ray cluster of two nodes on this machine, and the processes of its actors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import dermlens.cluster.crew  # noqa: F401  # quiets Ray before it is imported

import ray  # isort: skip
from ray.cluster_utils import Cluster  # isort: skip
import psutil  # isort: skip  # inside Ray: found once Ray is imported

PATIENCE = 10
"""Ray gives a node 30 s to come up and has no setting for it; a machine with much else to do takes longer."""
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


@contextmanager
def cluster_of_two() -> Iterator[tuple[Any, Any]]:
    """Start a cluster of two nodes with a core each; yield the cluster and its second node.

    This process leaves the cluster that it is connected to.
    """
    ray.shutdown()
    cluster = Cluster()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray._private.node, "time", _SlowClock())
            patch.setenv("RAY_raylet_start_wait_time_s", str(30 * PATIENCE))
            cluster.add_node(**NODE, include_dashboard=False)
            second = cluster.add_node(**NODE)
            cluster.wait_for_nodes(timeout=30 * PATIENCE)
        yield cluster, second
    finally:
        ray.shutdown()
        cluster.shutdown()


class _SlowClock:
    """The module `time`, by whose clock Ray waits PATIENCE times as long."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        return time.monotonic() / PATIENCE


def workers() -> list[Any]:
    """Return the processes of the Ray actors below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::_Worker"):
                found.append(process)
        except psutil.Error:
            continue
    return found
