"""The same batch on Ray: actors of one core, each with one compiled network, that write their parts themselves.

Only names of images travel to a worker and only facts about parts come back, so the object store holds little but the
model. When a worker dies, another one continues its unit after the rows that are in the folder, under the same names.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dermlens.batch import storage
from dermlens.batch.job import Engine, Job, Progress, Report, Settings, answer
from dermlens.batch.output import Folder, Part
from dermlens.batch.sources import Unit
from dermlens.cluster.crew import TRIES, Crew, WorkerDied, cluster_cores, connected, enter, fetch, share
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
            remedy = "Choose a folder or another URL."
            raise UsageError("memory:// exists in one process only; Ray has many.", remedy=remedy)
        with connected(address, workers):
            cores = cluster_cores()
            return _run(job, stop, report, min(workers or cores, cores))

    return run


class _Worker:
    """One core, one compiled network.

    Args:
        working_folder: of the program, which relative names are below.
    """

    def __init__(self, settings: Settings, folder: Folder, job: str, working_folder: str) -> None:
        cv2.setNumThreads(1)
        self._settings, self._folder, self._job, self._working_folder = settings, folder, job, working_folder
        self._predictor: Predictor | None = None

    def answer(self, bundle: list[Any], unit: Unit, skip: int) -> list[Part]:
        """Answer for a unit from row `skip` on and return its parts; continue what a dead worker has left of it.

        Args:
            bundle: the shared files of the model, name -> bytes, fetched by the first call.
        """
        folder, part_rows = self._folder, self._settings.part_rows
        enter(self._working_folder, None if storage.is_url(folder.path) else f"{folder.path}/{folder.manifest}")
        parts = {part.file: part for part in folder.parts_of(unit.number, skip - skip % part_rows, self._job)}
        for part in parts.values():
            skip = max(skip, part.start + part.rows)
            if part.last:
                return list(parts.values())
        predictor = self._predictor = self._predictor or self._load(fetch(bundle))
        work = [(unit, skip)]
        for part in answer(predictor, work, self._settings, folder, self._job, Stop(), lambda progress: None):
            parts[part.file] = part
        return list(parts.values())

    def _load(self, files: dict[str, bytes]) -> Predictor:
        with tempfile.TemporaryDirectory(prefix="dermlens-model-") as place:
            for name, data in files.items():
                Path(place, name).write_bytes(data)
            predictor = self._settings.predictor(place, threads=1)
            blank = np.zeros((predictor.bundle.input_spec.size_px,) * 2 + (3,), np.uint8)
            list(predictor.predict_many([blank] * (BATCH + 1)))  # compiles while the files are there
        return predictor


def _run(job: Job, stop: Stop, report: Report, workers: int) -> bool:
    """Answer for all units; False where a stop was requested, or rows are missing in the end."""
    ledger, deadly = job.ledger, list[Unit]()
    files = share({path.name: path.read_bytes() for path in job.bundle.folder.iterdir() if path.is_file()})
    crew = Crew(_Worker, (job.settings, ledger.folder, ledger.job, os.getcwd()), workers)
    units = ((files, unit, skip) for unit, skip in job.work())
    try:
        with closing(crew.run(units, lambda: stop.requested)) as results:
            for item in results:
                if item is None:
                    report(Progress(0, 0, 0.0))  # a sign of life: a unit takes minutes, a full cluster longer
                    continue
                (_, unit, skip), parts = item
                if isinstance(parts, WorkerDied):
                    deadly.append(unit)
                else:
                    _record(job, report, unit, skip, parts)
    finally:
        recorded = ledger.rows
        ledger.rescan()
    if deadly:
        raise _killer(deadly)
    return not stop.requested and ledger.rows >= recorded


def _record(job: Job, report: Report, unit: Unit, skip: int, parts: list[Part]) -> None:
    ledger = job.ledger
    rows, errors = ledger.rows, ledger.errors
    for part in parts:
        ledger.record(part)
    report(Progress(ledger.rows - rows, ledger.errors - errors, max(0.0, unit.weight - skip)))


def _killer(units: list[Unit]) -> DermlensError:
    first = units[0].sources
    return DermlensError(
        f"{len(units)} units ended their worker {TRIES + 1} times, the first with {len(first)} sources "
        f"from {first[0].path!r} to {first[-1].path!r}. Everything else is done.",
        remedy="Give the workers more memory, or find the file with --part-rows 1; then add --resume to continue.",
        code="worker_died",
    )
