"""Ray actors that may die: they are started, given units of work, replaced. The one module that imports Ray.

Deaths are handled here and not by Ray's retries, which a lost node uses up before it is known to be lost.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import ray

from dermlens import errors
from dermlens.errors import DermlensError, UsageError

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without these Ray talks before it works
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

TRIES = 3
"""How often a unit whose worker died is tried again; what kills every worker must not go round for ever."""
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
        UsageError: nobody answers.
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
    """Find out in seconds what Ray finds out in minutes; UsageError where nobody does."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_WITHIN_S).close()
        except OSError as error:
            raise _unavailable(address, error) from error


def _unavailable(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"Ray does not answer at {address}: {str(error).splitlines()[0].rstrip('.')}.",
        remedy="Check --address and that Python and Ray have the same versions there as here.",
        code="ray_unavailable",
    )


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


def spare(workers: int | None, most_cores: int) -> tuple[int, int, int]:
    """Return how many heavy workers a cluster bears, and the cores and GPUs of each.

    Args:
        workers: wanted; by default one for each GPU, or for each `most_cores` cores.
    """
    cores, gpus = cluster_cores(), int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    largest = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
    most = gpus or cores
    size = min(workers or gpus or max(1, cores // most_cores), most)
    return size, max(1, min(cores // size, largest, most_cores)), 1 if gpus else 0


def as_here(kind: str, words: dict[str, str]) -> DermlensError:
    """Return an error that came from a worker as the name of its class and `as_dict`."""
    found: DermlensError = getattr(errors, kind, DermlensError)(
        words["message"], remedy=words["remedy"], code=words["code"]
    )
    return found


def share(value: Any) -> list[Any]:
    """Put a value where all workers can `fetch` it."""
    return [ray.put(value)]  # in a list it is passed on as a reference


def fetch(shared: list[Any]) -> Any:
    """Return what `share` put."""
    return ray.get(shared[0])


@dataclass(frozen=True)
class Lost:
    """The result of a unit that ended its worker TRIES + 1 times."""


@dataclass(frozen=True)
class _Unit:
    number: int
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _Asked:
    """What a worker was asked: whether it is up (no unit), or for a unit."""

    actor: Any
    unit: _Unit | None = None


class _Notes:
    """What workers have said, and who shall end."""

    def __init__(self) -> None:
        self._said: list[tuple[int, Any]] = []
        self._ended: set[int] = set()

    def say(self, number: int, words: Any) -> bool:
        self._said.append((number, words))
        return number in self._ended

    def heard(self) -> list[tuple[int, Any]]:
        said, self._said = self._said, []
        return said

    def end(self, number: int) -> None:
        self._ended.add(number)


class Board:
    """Where workers tell the driver how they get on while they work; made by the driver, handed to the workers."""

    def __init__(self) -> None:
        self._notes: Any = ray.remote(num_cpus=0)(_Notes).remote()

    def say(self, number: int, words: Any) -> bool:
        """Say something of a piece of work; returns whether it shall end."""
        return bool(ray.get(self._notes.say.remote(number, words)))

    def heard(self) -> list[tuple[int, Any]]:
        """Return what was said since the last call."""
        return list(ray.get(self._notes.heard.remote()))

    def end(self, number: int) -> None:
        """Let the next word of this piece of work be its last."""
        self._notes.end.remote(number)


class Crew:
    """Workers of one class; a few units wait at each that is up, the rest are taken as they are needed.

    Args:
        worker: a class with the methods `answer(*unit)`, which may be called again for the same unit, and
            `pid()`, the number of its process.
        arguments: of its constructor.
        size, cores, gpus: how many workers, and what each one holds.
        waiting: units at a worker, the one in work among them.
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
        self._worker, self._arguments, self._size = worker, arguments, size
        self._cores, self._gpus = cores, gpus
        self._waiting = waiting
        self._asked: dict[Any, _Asked] = {}
        self._again: deque[_Unit] = deque()
        self._actors: list[Any] = []
        self._idle: list[Any] = []
        self._deaths: Counter[int] = Counter()
        self._found: deque[tuple[tuple[Any, ...], Any]] = deque()
        self._bad_starts = 0
        self._numbers = count()

    def run(
        self, units: Iterable[tuple[Any, ...]], stop: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[tuple[Any, ...], Any] | None, None, None]:
        """Yield each unit with its result, `Lost` for one that kills, in the order of their ends; None now and then.

        Closing the iterator ends the workers.
        """
        self._work = (_Unit(next(self._numbers), unit) for unit in units)
        try:
            for _ in range(self._size):
                self._hire()
            while not stop():
                done, _ = ray.wait(list(self._asked), num_returns=1, timeout=LOOK_EVERY_S)
                for reference in done:
                    self._settle(reference)
                yield from self._found
                self._found.clear()
                if not self._more() and not any(asked.unit for asked in self._asked.values()):
                    break  # all is answered; workers that are still to come would have nothing to do
                yield None
        finally:
            for actor in self._actors:
                ray.kill(actor)

    def add(self, unit: tuple[Any, ...]) -> None:
        """Add a unit while the iterator of `run` is open."""
        self._again.append(_Unit(next(self._numbers), unit))
        self._wake()

    def _more(self) -> bool:
        """Look for one more unit and put it in front."""
        if not self._again and (following := next(self._work, None)) is not None:
            self._again.append(following)
        return bool(self._again)

    def _hire(self) -> None:
        """Start a worker; it gets its first units when it is up, which on a full cluster may be never."""
        remote = ray.remote(num_cpus=self._cores, num_gpus=self._gpus, max_restarts=0, max_task_retries=0)(self._worker)
        actor: Any = remote.remote(*self._arguments)
        self._actors.append(actor)
        self._asked[actor.pid.remote()] = _Asked(actor)

    def _give(self, actor: Any) -> None:
        if self._more():
            unit = self._again.popleft()
            self._asked[actor.answer.remote(*unit.arguments)] = _Asked(actor, unit)
        elif not any(asked.actor is actor for asked in self._asked.values()) and actor not in self._idle:
            self._idle.append(actor)

    def _settle(self, reference: Any) -> None:
        if (asked := self._asked.get(reference)) is None:  # of a worker that was just buried
            return
        try:
            result = ray.get(reference)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            self._bury(asked.actor, error)
            return
        except ray.exceptions.ObjectLostError:  # made, but gone with its node before it came here
            del self._asked[reference]
            self._try_again(asked.unit, guilty=True)
            self._give(asked.actor)
            return
        del self._asked[reference]
        if asked.unit is None:
            self._bad_starts = 0
            for _ in range(self._waiting):
                self._give(asked.actor)
        else:
            self._found.append((asked.unit.arguments, result))
            self._give(asked.actor)

    def _bury(self, actor: Any, error: Exception) -> None:
        """Put the units of a dead worker back, start another one, and let those without work have them."""
        ray.kill(actor)
        self._actors.remove(actor)
        waiting = [(reference, asked) for reference, asked in self._asked.items() if asked.actor is actor]
        for place, (reference, asked) in enumerate(waiting):
            del self._asked[reference]
            if asked.unit is None:
                self._count_bad_start(error)
            else:
                self._try_again(asked.unit, guilty=place == 0)  # the first is the one that it was working on
        self._hire()
        self._wake()

    def _wake(self) -> None:
        """Let workers without work look for some."""
        idle, self._idle = self._idle, []
        for other in idle:
            self._give(other)

    def _try_again(self, unit: _Unit | None, *, guilty: bool) -> None:
        if unit is None:
            return
        self._deaths[unit.number] += guilty
        if self._deaths[unit.number] > TRIES:
            self._found.append((unit.arguments, Lost()))
        else:
            self._again.append(unit)

    def _count_bad_start(self, error: Exception) -> None:
        self._bad_starts += 1
        if self._bad_starts > TRIES * self._size:
            raise _unavailable("these nodes: no worker comes up there", error) from error
