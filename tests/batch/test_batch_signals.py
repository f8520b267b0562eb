"""What watches a batch can read: metrics as Prometheus parses them, JSON lines, and no image's name in either."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dermlens.batch.progress import Signals, State, metrics_text
from dermlens.errors import StorageError


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Return (name, state label) -> value."""
    families = text_string_to_metric_families(text)
    return {(s.name, s.labels.get("state", "")): s.value for family in families for s in family.samples}


def test_metrics_are_read_by_prometheus_whatever_the_model_is_called() -> None:
    state = State(rows_before=10, errors_before=1, total=100, weight=50, rows=40, errors=2, name="interrupted")
    labels = {"model": 'a "b"\\c\nd', "version": "1", "shard": "1/2"}
    first = next(iter(text_string_to_metric_families(metrics_text(state, labels))))
    assert first.name == "dermlens_batch_rows" and first.samples[0].labels == labels
    found = parsed(metrics_text(state, labels))
    assert found["dermlens_batch_rows", ""] == 50 and found["dermlens_batch_error_rows", ""] == 3
    assert found["dermlens_batch_done_ratio", ""] == 0.5 and found["dermlens_batch_run_rows", ""] == 40
    assert found["dermlens_batch_state", "interrupted"] == 1 and found["dermlens_batch_state", "running"] == 0


def test_a_finished_batch_is_done_whatever_its_tar_shards_were_taken_for() -> None:
    state = State(rows_before=0, errors_before=0, total=100, weight=98.6, name="finished")
    assert state.values()["done_ratio"] == 1.0


def test_what_cannot_be_written_is_told_at_once_and_later_only_noted(tmp_path: Path) -> None:
    state = State(0, 0, 1, 0)
    with pytest.raises(StorageError, match="metrics file"):
        Signals(None, tmp_path / "none" / "b.prom", {}).begin(state)
    stream, folder = io.StringIO(), tmp_path / "there"
    folder.mkdir()
    signals = Signals(stream, folder / "b.prom", {"shard": "1/1"})
    signals.begin(state)
    assert [path.name for path in folder.iterdir()] == ["b.prom"]
    (folder / "b.prom").unlink()
    folder.rmdir()
    for name in ("finished", "finished"):
        state.name = name
        signals.end(state)
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["batch.started", "batch.note", "batch.finished", "batch.finished"]


def test_progress_is_told_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, state = io.StringIO(), State(0, 0, 10, 0)
    signals = Signals(stream, tmp_path / "b.prom", {})
    signals.begin(state)
    signals.advance(state)
    assert len(stream.getvalue().splitlines()) == 1
    monkeypatch.setattr("dermlens.batch.progress.LOG_EVERY_S", 0.0)
    monkeypatch.setattr("dermlens.batch.progress.METRICS_EVERY_S", 0.0)
    state.rows = 3
    signals.advance(state)
    line = json.loads(stream.getvalue().splitlines()[1])
    assert line["event"] == "batch.progress" and line["run_rows"] == 3 and line["level"] == "info"
    assert parsed((tmp_path / "b.prom").read_text())["dermlens_batch_run_rows", ""] == 3
