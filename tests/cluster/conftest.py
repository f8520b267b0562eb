"""One Ray cluster for all tests of this folder: starting one takes as long as all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_nodes import cluster_of_two

import ray  # isort: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that leave the shared cluster come last: Ray does not always find back to it after another one."""
    items.sort(key=lambda item: "no_cluster" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def cluster_address() -> Iterator[str]:
    """Run a cluster of two nodes with a core each; yield its address."""
    with cluster_of_two() as (cluster, _):
        yield cluster.address


@pytest.fixture
def two_nodes(cluster_address: str) -> str:
    """Be connected to the shared cluster; return its address."""
    if not ray.is_initialized():
        ray.init(address=cluster_address, log_to_driver=False)
    return cluster_address


@pytest.fixture
def no_cluster() -> None:
    """Be connected to no cluster."""
    ray.shutdown()
