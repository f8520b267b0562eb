"""The same batch on Ray: actors of one core, each with one compiled network, that write their parts themselves.

Only names of images travel to a worker and only facts about parts come back, so the object store holds little but the
model. A worker that dies is started anew and its unit is answered again: a part has the same name and the same rows
then.
"""

from __future__ import annotations

import os
import platform
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dermlens.batch import storage
from dermlens.batch.job import Engine, Job, Progress, Report, Settings, answer
from dermlens.batch.output import Folder, Part
from dermlens.batch.sources import Unit
from dermlens.cluster.crew import TRIES, Crew, Lost, as_here, cluster_cores, connected, fetch, share
from dermlens.errors import DermlensError, UsageError
from dermlens.inference.predictor import Predictor
from dermlens.inference.runtime import BATCH
from dermlens.signals import Stop


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
        with connected(address, workers):
            cores = cluster_cores()
            return _run(job, stop, report, min(workers or cores, cores))

    return run


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
            bundle: the shared files of the model, name -> bytes, fetched by the first call.
        """
        parts: list[Part] = []
        try:
            self._go_where_the_files_are()
            predictor = self._predictor = self._predictor or self._load(fetch(bundle))
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


def _run(job: Job, stop: Stop, report: Report, workers: int) -> bool:
    """Answer for all units; False where a stop was wanted."""
    ledger, lost = job.ledger, list[Unit]()
    files = share({path.name: path.read_bytes() for path in job.bundle.folder.iterdir() if path.is_file()})
    crew = Crew(_Worker, (job.settings, ledger.folder, ledger.job, os.getcwd()), workers)
    units = ((files, unit, skip) for unit, skip in job.work())
    try:
        with closing(crew.run(units, lambda: stop.requested)) as found:
            for item in found:
                if item is None:
                    report(Progress(0, 0, 0.0))  # a sign of life: a unit takes minutes, a full cluster longer
                    continue
                (_, unit, _), outcome = item
                if isinstance(outcome, Lost):
                    lost.append(unit)
                else:
                    _take(job, report, unit, outcome)
    finally:
        ledger.rescan()
    if lost:
        raise _killer(lost)
    return not stop.requested


def _take(job: Job, report: Report, unit: Unit, outcome: _Outcome) -> None:
    for part in outcome.parts:
        job.ledger.record(part)
    rows, failed = sum(p.rows for p in outcome.parts), sum(p.errors for p in outcome.parts)
    report(Progress(rows, failed, unit.weight))
    if outcome.stopped_by is not None:
        raise as_here(*outcome.stopped_by)


def _killer(lost: list[Unit]) -> DermlensError:
    first = lost[0].sources
    return DermlensError(
        f"{len(lost)} units ended their worker {TRIES + 1} times, the first with {len(first)} sources "
        f"from {first[0].path!r} to {first[-1].path!r}. Everything else is done.",
        remedy="Give the workers more memory, or find the file with --part-rows 1; then go on with --resume.",
        code="worker_died",
    )
