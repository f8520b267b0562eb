"""Progress of a batch: rows, failures, images/s and time left, where the number of images may not be known before.

A batch for machines that watch it: JSON log lines, and a metrics file for Prometheus's textfile collector.

Neither names the image of a row: what it was answered stands in the data set. An argument that is wrong is named.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from dermlens.errors import StorageError

LINE_EVERY_S = 30.0
SHOW_EVERY_S = 0.2

Advance = Callable[[int, int, float], None]


@dataclass
class _Count:
    """Rows and weight done by this run; `done_before` and `total` are weights too."""

    total: float
    done_before: float
    weight: float = 0.0
    rows: int = 0
    errors: int = 0
    begun: float = field(default_factory=lambda: time.monotonic())

    def add(self, rows: int, errors: int, weight: float) -> None:
        self.rows += rows
        self.errors += errors
        self.weight += weight

    @property
    def share(self) -> float:
        return min(1.0, (self.done_before + self.weight) / max(self.total, 1e-9))

    def text(self) -> str:
        """Return what a person wants to know, in one line."""
        passed_s = max(1e-9, time.monotonic() - self.begun)
        rate = self.rows / passed_s
        left = max(0.0, self.total - self.done_before - self.weight)
        failed = f", {self.errors:,} failed" if self.errors else ""
        left_s = left * passed_s / self.weight if self.weight else None
        left_text = "" if left_s is None else f", {_duration(left_s)} left"
        return f"{self.rows:,} images{failed}, {rate:.0f} images/s{left_text}"


@contextmanager
def track_batch(total: float, done_before: float, console: Console) -> Iterator[Advance]:
    """Show progress; the yielded function is called with rows, errors among them, and their weight.

    A live bar on a terminal, a line every half minute elsewhere.

    Args:
        total, done_before: weight of everything and of what an earlier run did, about a number of images.
    """
    count = _Count(total, done_before)
    if not console.is_terminal:
        yield _logged(count, console)
        return
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0)
        bar.update(task, completed=count.share)
        shown = 0.0

        def advance(rows: int, errors: int, weight: float) -> None:
            nonlocal shown
            count.add(rows, errors, weight)
            if time.monotonic() - shown > SHOW_EVERY_S:
                shown = time.monotonic()
                bar.update(task, completed=count.share, description=count.text())

        yield advance
        bar.update(task, completed=count.share, description=count.text())


def _logged(count: _Count, console: Console) -> Advance:
    told = count.begun

    def advance(rows: int, errors: int, weight: float) -> None:
        nonlocal told
        count.add(rows, errors, weight)
        if time.monotonic() - told >= LINE_EVERY_S:
            told = time.monotonic()
            console.print(f"Batch: {count.share:.1%}, {count.text()}", highlight=False)

    return advance


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


LOG_EVERY_S, METRICS_EVERY_S = 30.0, 10.0
STATES = ("running", "finished", "interrupted", "failed")
_HELP = {
    "rows": "Rows in the data set, those of earlier runs among them.",
    "error_rows": "Rows of images that could not be read, those of earlier runs among them.",
    "done_ratio": "Share of the inputs that is done, 0 to 1.",
    "run_rows": "Rows that this run has made.",
    "run_seconds": "How long this run has taken.",
    "last_update_timestamp_seconds": "When this file was written.",
}


@dataclass
class State:
    """Where a batch stands; `rows` and `errors` before this run are `rows_before` and `errors_before`."""

    rows_before: int
    errors_before: int
    total: float
    weight: float
    rows: int = 0
    errors: int = 0
    name: str = "running"
    begun: float = field(default_factory=time.monotonic)

    def values(self) -> dict[str, float]:
        """Return the metrics by name; what a tar shard weighs is a guess, so a finished batch says 1."""
        ratio = 1.0 if self.name == "finished" else min(1.0, self.weight / max(self.total, 1e-9))
        return {
            "rows": self.rows_before + self.rows,
            "error_rows": self.errors_before + self.errors,
            "done_ratio": round(ratio, 6),
            "run_rows": self.rows,
            "run_seconds": round(time.monotonic() - self.begun, 3),
        }


class Signals:
    """Tells what a batch does, by JSON lines, by a metrics file, by both or by none.

    Args:
        stream: where JSON lines go; None logs none.
        metrics: the file; None writes none.
        labels: of every metric and line: model, version, shard.
    """

    def __init__(self, stream: TextIO | None, metrics: Path | None, labels: Mapping[str, str]) -> None:
        self._stream, self._metrics, self._labels = stream, metrics, dict(labels)
        self._logged = self._written = time.monotonic()
        self._told_of_failure = False

    def begin(self, state: State) -> None:
        """Tell that the batch starts.

        Raises:
            StorageError: the metrics file cannot be written.
        """
        if self._metrics is not None:
            try:
                self._write(state)
            except OSError as error:
                raise StorageError(
                    f"The metrics file {self._metrics} cannot be written: {error.strerror or error}.",
                    remedy="Name a file in a folder that exists, for example --metrics batch.prom.",
                ) from error
        self.log("started", **state.values())

    def advance(self, state: State) -> None:
        """Tell how far it is, now and then."""
        now = time.monotonic()
        if now - self._written >= METRICS_EVERY_S:
            self._written = now
            self._try_to_write(state)
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            self.log("progress", **state.values())

    def end(self, state: State) -> None:
        """Tell how it ended: `state.name`."""
        self._try_to_write(state)
        self.log(state.name, **state.values())

    def log(self, event: str, **values: Any) -> None:
        """Write one line: time in UTC, level, event, labels and values."""
        if self._stream is None:
            return
        level = {"failed": "error", "error": "error", "interrupted": "warning", "note": "warning"}.get(event, "info")
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": stamp, "level": level, "event": f"batch.{event}", **self._labels, **values}
        self._stream.write(json.dumps(line, ensure_ascii=True) + "\n")
        self._stream.flush()

    def _try_to_write(self, state: State) -> None:
        """Write the metrics; a disk that is full does not end the batch, and is told once."""
        try:
            self._write(state)
        except OSError as error:
            if not self._told_of_failure:
                self._told_of_failure = True
                self.log("note", text=f"The metrics file cannot be written: {error.strerror or error}.")

    def _write(self, state: State) -> None:
        if self._metrics is None:
            return
        temporary = self._metrics.with_name(f".{self._metrics.name}.{os.getpid()}")
        try:
            temporary.write_text(metrics_text(state, self._labels), encoding="utf-8")
            temporary.replace(self._metrics)
        finally:
            temporary.unlink(missing_ok=True)


def metrics_text(state: State, labels: Mapping[str, str]) -> str:
    """Return the metrics in Prometheus's text format."""
    values = {**state.values(), "last_update_timestamp_seconds": round(time.time(), 3)}
    lines = []
    for name, value in values.items():
        full = f"dermlens_batch_{name}"
        lines += [f"# HELP {full} {_HELP[name]}", f"# TYPE {full} gauge", f"{full}{_labels(labels)} {value}"]
    full = "dermlens_batch_state"
    lines += [f"# HELP {full} 1 for the state that the batch is in.", f"# TYPE {full} gauge"]
    lines += [f"{full}{_labels({**labels, 'state': name})} {int(name == state.name)}" for name in STATES]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
