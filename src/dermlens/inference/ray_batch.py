"""The same batch on Ray: actors of one core, each with one compiled network, that write their parts themselves.

Only names of images travel to a worker and only facts about parts come back, so the object store holds little but the
model. A worker that dies is started anew and its unit is answered again: a part has the same name and the same rows
then. The one module that imports Ray.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without these Ray talks before it works
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import cv2
import numpy as np
import ray

from dermlens import errors
from dermlens.errors import DermlensError, UsageError
from dermlens.inference import storage
from dermlens.inference.batch import Engine, Job, Progress, Report, Settings, answer
from dermlens.inference.listing import Unit
from dermlens.inference.parts import Folder, Part
from dermlens.inference.predict import Predictor
from dermlens.inference.runtime import BATCH
from dermlens.inference.stopping import Stop

TRIES = 3
"""How often a unit whose worker died is tried again; what kills every worker must not go round for ever."""
WAITING_A_WORKER = 2
LOOK_EVERY_S = 0.5
CONNECT_WITHIN_S = 10.0
OBJECT_STORE_BYTES = 200_000_000


def ray_engine(address: str | None = None, workers: int | None = None) -> Engine:
    """Return the engine for `run_job`.

    Args:
        address: of a running cluster ("auto", "host:6379"); a local one is started when None.
        workers: actors of one core; as many as the cluster has cores by default. Every node must reach the images
            and the output under the same names, and have dermlens with the extra `scale`.
    """

    def run(job: Job, stop: Stop, report: Report) -> bool:
        if job.ledger.folder.path.startswith("memory://"):
            raise UsageError(
                "memory:// lives in one process only; Ray has many.", remedy="Choose a folder or another URL."
            )
        with _connected(address, workers):
            cores = max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
            return _Run(job, stop, report, min(workers or cores, cores)).run()

    return run


@contextmanager
def _connected(address: str | None, workers: int | None) -> Iterator[None]:
    """Be connected to a cluster: the one that this process has, the one at `address`, or a new one of its own."""
    if ray.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:  # sockets need short paths
        own = {"num_cpus": workers, "object_store_memory": OBJECT_STORE_BYTES, "_temp_dir": place}
        options = {"address": address} if address is not None else {"address": "local", **own}
        if address is not None:
            _check_that_somebody_listens(address)
        try:
            with _own_signals():
                ray.init(**options, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _unavailable(address or "this machine", error) from error
        try:
            yield
        finally:
            ray.shutdown()


def _check_that_somebody_listens(address: str) -> None:
    """Find out in seconds what Ray finds out in minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_WITHIN_S).close()
        except OSError as error:
            raise _unavailable(address, error) from error


def _unavailable(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"Ray does not answer at {address}: {str(error).splitlines()[0]}.",
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


@dataclass(frozen=True)
class _Outcome:
    """What a worker hands back: its parts, and what stopped it as the name of the error's class and its words."""

    parts: list[Part]
    stopped_by: tuple[str, dict[str, str]] | None = None


class _Worker:
    """One core, one compiled network. Its `answer` may be called again for the same unit.

    Args:
        working_folder: of the program, which relative names are below.
    """

    def __init__(self, settings: Settings, folder: Folder, job: str, working_folder: str) -> None:
        cv2.setNumThreads(1)
        self._settings, self._folder, self._job, self._working_folder = settings, folder, job, working_folder
        self._predictor: Predictor | None = None

    def answer(self, bundle: list[Any], unit: Unit, skip: int) -> _Outcome:
        """Answer for a unit from row `skip` on; an error of dermlens comes back as a value.

        Args:
            bundle: one reference to the model's files, name -> bytes, fetched by the first call.
        """
        parts: list[Part] = []
        try:
            self._go_where_the_files_are()
            predictor = self._predictor = self._predictor or self._load(ray.get(bundle[0]))
            work, folder = [(unit, skip)], self._folder
            for part in answer(predictor, work, self._settings, folder, self._job, Stop(), lambda progress: None):
                parts.append(part)
        except DermlensError as error:
            return _Outcome(parts, (type(error).__name__, error.as_dict()))
        return _Outcome(parts)

    def _load(self, files: dict[str, bytes]) -> Predictor:
        with tempfile.TemporaryDirectory(prefix="dermlens-model-") as place:
            for name, data in files.items():
                Path(place, name).write_bytes(data)
            limits = {"max_bytes": self._settings.max_bytes, "max_pixels": self._settings.max_pixels}
            predictor = Predictor(place, threads=1, **limits)
            size = predictor.bundle.input_spec.size_px
            blank = np.zeros((size, size, 3), np.uint8)
            list(predictor.predict_many([blank] * (BATCH + 1)))  # compiles while the files are there
        return predictor

    def pid(self) -> int:
        """Return the number of the process."""
        return os.getpid()

    def _go_where_the_files_are(self) -> None:
        """Refuse to answer on a node that does not see the driver's files: every image would be missing there."""
        out = self._folder.path
        if os.path.isdir(self._working_folder):
            os.chdir(self._working_folder)
        if not storage.is_url(out) and not os.path.isfile(f"{out}/{self._folder.manifest}"):
            raise UsageError(
                f"The node {platform.node()} does not see {out}. All nodes need the same folders under the same names.",
                remedy="Use a shared file system or URLs.",
                code="not_shared",
            )


@dataclass
class _Run:
    """One run over the units: a few wait at each worker that is up, the rest are listed as they are needed.

    Deaths are handled here and not by Ray's retries, which a lost node uses up before it is known to be lost.
    """

    job: Job
    stop: Stop
    report: Report
    workers: int
    _asked: dict[Any, _Asked] = field(default_factory=dict)
    _again: deque[tuple[Unit, int]] = field(default_factory=deque)
    _actors: list[Any] = field(default_factory=list)
    _idle: list[Any] = field(default_factory=list)
    _deaths: Counter[int] = field(default_factory=Counter)
    _bad_starts: int = 0
    _lost: list[Unit] = field(default_factory=list)

    def run(self) -> bool:
        self._work = self.job.work()
        files = {path.name: path.read_bytes() for path in self.job.bundle.folder.iterdir() if path.is_file()}
        self._bundle = [ray.put(files)]
        try:
            for _ in range(self.workers):
                self._hire()
            while not self.stop.wanted and (len(self._idle) < len(self._actors) or self._again):
                done, _ = ray.wait(list(self._asked), num_returns=1, timeout=LOOK_EVERY_S)
                for reference in done:
                    self._settle(reference)
                if not self._more() and not any(asked.unit for asked in self._asked.values()):
                    break  # workers that are still to come would have nothing to do
        finally:
            for actor in self._actors:
                ray.kill(actor)
            self.job.ledger.rescan()
        if self._lost:
            raise _killer(self._lost)
        return not self.stop.wanted

    def _more(self) -> bool:
        """Look for one more unit and put it in front."""
        if not self._again and (following := next(self._work, None)) is not None:
            self._again.append(following)
        return bool(self._again)

    def _hire(self) -> None:
        """Start a worker; it gets its first units when it is up, which on a full cluster may be never."""
        ledger = self.job.ledger
        remote = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Worker)
        actor: Any = remote.remote(self.job.settings, ledger.folder, ledger.job, os.getcwd())
        self._actors.append(actor)
        self._asked[actor.pid.remote()] = _Asked(actor)

    def _give(self, actor: Any) -> None:
        if self._more():
            unit, skip = self._again.popleft()
            self._asked[actor.answer.remote(self._bundle, unit, skip)] = _Asked(actor, unit, skip)
        elif not any(asked.actor is actor for asked in self._asked.values()):
            self._idle.append(actor)

    def _settle(self, reference: Any) -> None:
        if (asked := self._asked.get(reference)) is None:  # of a worker that was just buried
            return
        try:
            outcome = ray.get(reference)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            self._bury(asked.actor, error)
            return
        del self._asked[reference]
        if asked.unit is None:
            self._bad_starts = 0
            for _ in range(WAITING_A_WORKER):
                self._give(asked.actor)
        else:
            self._take(outcome, asked.unit)
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
                continue
            self._deaths[asked.unit.number] += place == 0  # the first is the one that it was working on
            if self._deaths[asked.unit.number] > TRIES:
                self._lost.append(asked.unit)
            else:
                self._again.append((asked.unit, asked.skip))
        self._hire()
        idle, self._idle = self._idle, []
        for other in idle:
            self._give(other)

    def _count_bad_start(self, error: Exception) -> None:
        self._bad_starts += 1
        if self._bad_starts > TRIES * self.workers:
            raise _unavailable("these nodes: no worker comes up there", error) from error

    def _take(self, outcome: _Outcome, unit: Unit) -> None:
        for part in outcome.parts:
            self.job.ledger.record(part)
        rows, failed = sum(p.rows for p in outcome.parts), sum(p.errors for p in outcome.parts)
        self.report(Progress(rows, failed, unit.weight))
        if outcome.stopped_by is not None:
            kind, words = outcome.stopped_by
            raise getattr(errors, kind, DermlensError)(words["message"], remedy=words["remedy"], code=words["code"])


@dataclass(frozen=True)
class _Asked:
    """What a worker was asked: whether it is up (no unit), or for a unit from row `skip` on."""

    actor: Any
    unit: Unit | None = None
    skip: int = 0


def _killer(lost: list[Unit]) -> DermlensError:
    first = lost[0].sources
    return DermlensError(
        f"{len(lost)} units ended their worker {TRIES + 1} times, the first with {len(first)} sources "
        f"from {first[0].path!r} to {first[-1].path!r}. Everything else is done.",
        remedy="Give the workers more memory, or find the file with --part-rows 1; then go on with --resume.",
        code="worker_died",
    )
