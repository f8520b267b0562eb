"""Ray actors that may die: they are started, given units of work, replaced. The one module that imports Ray.

Deaths are handled here and not by Ray's retries, which a lost node uses up before it is known to be lost.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from dermlens.errors import DermlensError, UsageError

# Without these Ray prints messages of its own.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")

TRIES = 3
"""How often a unit is tried again after its worker died; what kills every worker must come to an end."""
WAITING_A_WORKER = 2
LOOK_EVERY_S = 0.5
CONNECT_WITHIN_S = 10.0
OBJECT_STORE_BYTES = 200_000_000


@contextmanager
def connected(
    address: str | None, cores: int | None = None, object_store_bytes: int = OBJECT_STORE_BYTES
) -> Iterator[None]:
    """Be connected to a cluster: the one that this process has, the one at `address`, or a new one of its own.

    Args:
        cores, object_store_bytes: of a new one; all cores of this machine when None.
    Raises:
        UsageError: Ray does not answer.
    """
    if ray.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:  # sockets need short paths
        own = {"num_cpus": cores, "object_store_memory": object_store_bytes, "_temp_dir": place}
        options = {"address": address} if address is not None else {"address": "local", **own}
        if address is not None:
            check_that_somebody_listens(address)
        try:
            with _own_signals():
                ray.init(**options, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:  # a plain one, among others, where Ray's node does not come up within 30 s
            raise _unavailable(address or "this machine", error) from error
        try:
            yield
        finally:
            ray.shutdown()


def check_that_somebody_listens(address: str) -> None:
    """Raise a UsageError within seconds where nobody does; Ray would take minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_WITHIN_S).close()
        except OSError as error:
            raise _unavailable(address, error) from error


def _unavailable(address: str, error: Exception) -> UsageError:
    what = f"Ray does not answer at {address}: {str(error).splitlines()[0].rstrip('.')}."
    remedy = "Check --address and that Python and Ray have the same versions there as here."
    return UsageError(what, remedy=remedy, code="ray_unavailable")


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our handler of SIGTERM; Ray sets one that ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def cluster_cores() -> int:
    """Return the cores of the cluster that this process is connected to."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]


def plan_workers(workers: int | None, most_cores: int) -> tuple[int, int, int]:
    """Return how many large workers a cluster has room for, and the cores and GPUs of each.

    Args:
        workers: how many are asked for; by default one for each GPU, or for each `most_cores` cores.
    """
    cores, gpus = cluster_cores(), int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    largest = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
    size = min(workers or gpus or max(1, cores // most_cores), gpus or cores)
    return size, max(1, min(cores // size, largest, most_cores)), 1 if gpus else 0


def enter(working_folder: str, needed: str | None) -> None:
    """Work in the program's folder, where the node of this worker has it.

    Raises:
        UsageError: the node does not see the file or folder `needed`, so it would miss every other file too.
    """
    if os.path.isdir(working_folder):
        os.chdir(working_folder)
    if needed is not None and not os.path.exists(needed):
        what = (
            f"The node {platform.node()} does not see {needed}. All nodes need the same folders, under the same names."
        )
        remedy = "Use a shared file system; for `dermlens batch` URLs work too."
        raise UsageError(what, remedy=remedy, code="not_shared")


def share(value: Any) -> list[Any]:
    """Put a value where all workers can `fetch` it."""
    return [ray.put(value)]  # in a list it is passed on as a reference


def fetch(shared: list[Any]) -> Any:
    """Return what `share` put."""
    return ray.get(shared[0])


@dataclass(frozen=True)
class WorkerDied:
    """The result of a unit that ended its worker TRIES + 1 times."""


@dataclass
class _Unit:
    arguments: tuple[Any, ...]
    deaths: int = 0


@dataclass(frozen=True)
class _Request:
    """What a worker was asked: whether it is ready (no unit), or for a unit."""

    actor: Any
    unit: _Unit | None = None


class _Messages:
    """What workers have posted, and which pieces of work shall stop."""

    def __init__(self) -> None:
        self._messages: list[tuple[int, Any]] = []
        self._stopped: set[int] = set()

    def post(self, number: int, message: Any) -> bool:
        self._messages.append((number, message))
        return number in self._stopped

    def read(self) -> list[tuple[int, Any]]:
        messages, self._messages = self._messages, []
        return messages

    def stop(self, number: int) -> None:
        self._stopped.add(number)


class Board:
    """Where workers post their progress while they work; made by the driver, handed to the workers."""

    def __init__(self) -> None:
        self._messages: Any = ray.remote(num_cpus=0)(_Messages).remote()

    def post(self, number: int, message: Any) -> bool:
        """Post a message about a piece of work; returns whether it shall stop."""
        return bool(ray.get(self._messages.post.remote(number, message)))

    def read(self) -> list[tuple[int, Any]]:
        """Return (number, message) of all that was posted since the last call."""
        return list(ray.get(self._messages.read.remote()))

    def stop(self, number: int) -> None:
        """Let a piece of work stop at its next message."""
        self._messages.stop.remote(number)


class Crew:
    """Workers of one class; a few units wait at each that is ready, the rest are taken as they are needed.

    Args:
        worker: a class with the method `answer(*unit)`, which may be called again for the same unit.
        arguments: of its constructor.
        size, cores, gpus: how many workers, and what each one holds.
        waiting: units at a worker, the current one included.
    """

    def __init__(
        self,
        worker: type[Any],
        arguments: tuple[Any, ...],
        size: int,
        *,
        cores: int = 1,
        gpus: int = 0,
        waiting: int = WAITING_A_WORKER,
    ) -> None:
        remote: Any = ray.remote(num_cpus=cores, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        self._worker, self._arguments, self._size, self._waiting = remote(worker), arguments, size, waiting
        self._requests: dict[Any, _Request] = {}
        self._again: deque[_Unit] = deque()
        self._actors: list[Any] = []
        self._idle: list[Any] = []
        self._results: deque[tuple[tuple[Any, ...], Any]] = deque()
        self._bad_starts = 0

    def run(
        self, units: Iterable[tuple[Any, ...]], stop: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[tuple[Any, ...], Any] | None, None, None]:
        """Yield each unit with its result, `WorkerDied` for one that kills, in the order of their ends; None at times.

        Closing the iterator ends the workers. Raises what a worker raised, or UsageError when no worker starts.
        """
        self._work = map(_Unit, units)
        try:
            for _ in range(self._size):
                self._start()
            while not stop():
                done, _ = ray.wait(list(self._requests), num_returns=1, timeout=LOOK_EVERY_S)
                for reference in done:
                    self._settle(reference)
                yield from self._results
                self._results.clear()
                if not self._has_more() and not any(request.unit for request in self._requests.values()):
                    break  # everything has its result; workers that have not started yet would have nothing to do
                yield None
        finally:
            for actor in self._actors:
                ray.kill(actor)

    def add(self, unit: tuple[Any, ...]) -> None:
        """Add a unit while the iterator of `run` is open."""
        self._again.append(_Unit(unit))
        self._wake()

    def _has_more(self) -> bool:
        """Look for one more unit and put it in front."""
        if not self._again and (following := next(self._work, None)) is not None:
            self._again.append(following)
        return bool(self._again)

    def _start(self) -> None:
        """Start a worker; it gets its first units when it is ready, which on a full cluster may be never."""
        actor: Any = self._worker.remote(*self._arguments)
        self._actors.append(actor)
        self._requests[actor.__ray_ready__.remote()] = _Request(actor)

    def _assign(self, actor: Any) -> None:
        if self._has_more():
            unit = self._again.popleft()
            self._requests[actor.answer.remote(*unit.arguments)] = _Request(actor, unit)
        elif not any(request.actor is actor for request in self._requests.values()) and actor not in self._idle:
            self._idle.append(actor)

    def _settle(self, reference: Any) -> None:
        if (request := self._requests.get(reference)) is None:  # of a worker that was just replaced
            return
        try:
            result = ray.get(reference)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            self._replace(request.actor, error)
            return
        except ray.exceptions.ObjectLostError:  # made, but gone with its node before it came here
            del self._requests[reference]
            self._try_again(request.unit, guilty=True)
            self._assign(request.actor)
            return
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DermlensError):
                raise error.cause from None
            raise
        del self._requests[reference]
        if request.unit is None:
            self._bad_starts = 0
            for _ in range(self._waiting):
                self._assign(request.actor)
        else:
            self._results.append((request.unit.arguments, result))
            self._assign(request.actor)

    def _replace(self, actor: Any, error: Exception) -> None:
        """Put the units of a dead worker back, start another one, and let those without work have them."""
        ray.kill(actor)
        self._actors.remove(actor)
        requests = [(reference, request) for reference, request in self._requests.items() if request.actor is actor]
        for place, (reference, request) in enumerate(requests):
            del self._requests[reference]
            self._try_again(request.unit, guilty=place == 0)  # it was working on the first
            self._bad_starts += request.unit is None
        if self._bad_starts > TRIES * self._size:
            raise _unavailable("these nodes: no worker starts there", error) from error
        self._start()
        self._wake()

    def _wake(self) -> None:
        """Let workers without work look for some."""
        idle, self._idle = self._idle, []
        for actor in idle:
            self._assign(actor)

    def _try_again(self, unit: _Unit | None, *, guilty: bool) -> None:
        if unit is None:
            return
        unit.deaths += guilty
        if unit.deaths > TRIES:
            self._results.append((unit.arguments, WorkerDied()))
        else:
            self._again.append(unit)
