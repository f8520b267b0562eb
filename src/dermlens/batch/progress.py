"""Where a batch stands: a bar or lines for a person, JSON log lines and a metrics file for machines.

Prometheus's textfile collector reads the metrics file. Log and metrics never name the image of a row: its answer is in
the data set. A wrong argument is named.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from dermlens.errors import os_errors
from dermlens.files import atomic_file

LINE_EVERY_S, BAR_EVERY_S = 30.0, 0.2
LOG_EVERY_S, METRICS_EVERY_S = 30.0, 10.0
STATES = ("running", "finished", "interrupted", "failed")
_HELP = {
    "rows": "Rows in the data set, those of earlier runs included.",
    "error_rows": "Rows of images that could not be read, those of earlier runs included.",
    "done_ratio": "Share of the inputs that is done, 0 to 1.",
    "run_rows": "Rows of this run.",
    "run_seconds": "Duration of this run so far.",
    "last_update_timestamp_seconds": "When this file was written.",
}
_LEVELS = {"failed": "error", "error": "error", "interrupted": "warning", "note": "warning"}


@dataclass
class Status:
    """Where a batch stands: what earlier runs did, and `rows`, `errors` and `weight` of this one.

    The weights are about numbers of images: the number in a tar shard is not known before it has been read.
    """

    total: float
    rows_before: int = 0
    errors_before: int = 0
    weight_before: float = 0.0
    rows: int = 0
    errors: int = 0
    weight: float = 0.0
    name: str = "running"
    begun: float = field(default_factory=lambda: time.monotonic())

    def add(self, rows: int, errors: int, weight: float) -> None:
        self.rows += rows
        self.errors += errors
        self.weight += weight

    @property
    def share(self) -> float:
        """How much of the job is done, 0..1."""
        done = self.weight_before + self.weight
        return 1.0 if self.name == "finished" else min(1.0, done / max(self.total, 1e-9))

    def values(self) -> dict[str, float]:
        """Return the metrics by name."""
        return {
            "rows": self.rows_before + self.rows,
            "error_rows": self.errors_before + self.errors,
            "done_ratio": round(self.share, 6),
            "run_rows": self.rows,
            "run_seconds": round(time.monotonic() - self.begun, 3),
        }

    def text(self) -> str:
        """Return what a person wants to know, in one line."""
        passed_s = max(1e-9, time.monotonic() - self.begun)
        failed = f", {self.errors:,} failed" if self.errors else ""
        left = max(0.0, self.total - self.weight_before - self.weight)
        left_text = f", {_duration(left * passed_s / self.weight)} left" if self.weight else ""
        return f"{self.rows:,} images{failed}, {self.rows / passed_s:.0f} images/s{left_text}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def show(status: Status, console: Console) -> Iterator[Callable[[], None]]:
    """Show a live bar on a terminal, a line every half minute elsewhere, whenever the given function is called."""
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    shown = status.begun
    with Progress(*columns, console=console) if console.is_terminal else nullcontext() as bar:
        if bar is not None:
            bar.update(bar.add_task("", total=1.0), completed=status.share)

        def refresh(every_s: float = LINE_EVERY_S if bar is None else BAR_EVERY_S) -> None:
            nonlocal shown
            if time.monotonic() - shown < every_s:
                return
            shown = time.monotonic()
            if bar is None:
                console.print(f"Batch: {status.share:.1%}, {status.text()}", highlight=False)
            else:
                bar.update(bar.task_ids[0], completed=status.share, description=status.text())

        yield refresh
        if bar is not None:
            refresh(0.0)


class Monitor:
    """Reports what a batch does to machines: JSON lines, a metrics file, both or neither.

    Args:
        stream: where JSON lines go; None logs none.
        metrics: the file; None writes none.
        labels: of every metric and line: model, version, shard.
    """

    def __init__(self, stream: TextIO | None, metrics: Path | None, labels: Mapping[str, str]) -> None:
        self._stream, self._metrics, self._labels = stream, metrics, dict(labels)
        self._logged = self._written = time.monotonic()
        self._has_failed = False

    @contextmanager
    def watch(self, status: Status) -> Iterator[None]:
        """Report the start and the end: `status.name`, or "failed" after an error.

        Raises:
            StorageError: the metrics file cannot be written.
        """
        remedy = "Choose a file that you may write, for example --metrics batch.prom."
        with os_errors(f"The metrics file {self._metrics} cannot be written", remedy):
            self._write(status)
        self.log("started", **status.values())
        try:
            yield
        except BaseException:
            status.name = "failed"
            raise
        finally:
            self._try_to_write(status)
            self.log(status.name, **status.values())

    def refresh(self, status: Status) -> None:
        """Report progress, if it is time to."""
        now = time.monotonic()
        if now - self._written >= METRICS_EVERY_S:
            self._written = now
            self._try_to_write(status)
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            self.log("progress", **status.values())

    def log(self, event: str, **values: Any) -> None:
        """Write one line: time in UTC, level, event, labels and values."""
        if self._stream is not None:
            stamp, level = datetime.now(UTC).isoformat(timespec="milliseconds"), _LEVELS.get(event, "info")
            line = {"time": stamp, "level": level, "event": f"batch.{event}", **self._labels, **values}
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()

    def _try_to_write(self, status: Status) -> None:
        """Write the metrics; a full disk does not end the batch, and is reported once."""
        try:
            self._write(status)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                self.log("note", text=f"The metrics file cannot be written: {error.strerror or error}.")

    def _write(self, status: Status) -> None:
        if self._metrics is None:
            return
        with atomic_file(self._metrics, ending=".tmp") as path:  # Prometheus's collector reads every *.prom
            path.write_text(metrics_text(status, self._labels), encoding="utf-8")


def metrics_text(status: Status, labels: Mapping[str, str]) -> str:
    """Return the metrics in Prometheus's text format."""
    lines = []
    for name, value in (status.values() | {"last_update_timestamp_seconds": round(time.time(), 3)}).items():
        lines += [*_head(name, _HELP[name]), f"dermlens_batch_{name}{_labels(labels)} {value}"]
    lines += _head("state", "1 for the state that the batch is in.")
    lines += [f"dermlens_batch_state{_labels({**labels, 'state': n})} {int(n == status.name)}" for n in STATES]
    return "\n".join(lines) + "\n"


def _head(name: str, text: str) -> list[str]:
    return [f"# HELP dermlens_batch_{name} {text}", f"# TYPE dermlens_batch_{name} gauge"]


def _labels(labels: Mapping[str, str]) -> str:
    escapes = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
    return "{" + ",".join(f'{name}="{value.translate(escapes)}"' for name, value in labels.items()) + "}"
