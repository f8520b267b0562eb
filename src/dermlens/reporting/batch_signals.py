"""A batch for machines that watch it: JSON log lines, and a metrics file for Prometheus's textfile collector.

Neither names the image of a row: what it was answered stands in the data set. An argument that is wrong is named.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from dermlens.errors import StorageError

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
