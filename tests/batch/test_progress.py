"""Where a batch stands: rate and time left for a person, JSON lines and metrics as Prometheus reads them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from dermlens.batch import progress
from dermlens.batch.progress import Monitor, Status, metrics_text, show
from dermlens.errors import StorageError


def test_a_log_shows_rate_failures_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    out, status = io.StringIO(), Status(total=1000.0, weight_before=200.0)
    with show(status, Console(file=out, width=100)) as refresh:
        for step in range(4):
            now = 10.0 * (step + 1)
            status.add(100, 1, 100.0)
            refresh()
    assert out.getvalue().splitlines() == ["Batch: 50.0%, 300 images, 3 failed, 10 images/s, 50 s left"]


def test_a_terminal_shows_a_bar_that_starts_where_the_last_run_ended() -> None:
    out, status = io.StringIO(), Status(total=10.0, weight_before=5.0)
    with show(status, Console(file=out, force_terminal=True, width=120)) as refresh:
        status.add(2, 0, 2.5)
        refresh()
    assert "75%" in out.getvalue() and "images/s" in out.getvalue() and "failed" not in out.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (600, "10 min"), (9000, "2.5 h")])
def test_time_left_is_readable(seconds: float, text: str) -> None:
    assert progress._duration(seconds) == text


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Return (name, state label) -> value."""
    families = text_string_to_metric_families(text)
    return {(s.name, s.labels.get("state", "")): s.value for family in families for s in family.samples}


def test_prometheus_reads_the_metrics_whatever_the_model_is_called() -> None:
    status = Status(100, rows_before=10, errors_before=1, weight=50, rows=40, errors=2, name="interrupted")
    labels = {"model": 'a "b"\\c\nd', "version": "1", "shard": "1/2"}
    first = next(iter(text_string_to_metric_families(metrics_text(status, labels))))
    assert first.name == "dermlens_batch_rows" and first.samples[0].labels == labels
    found = parsed(metrics_text(status, labels))
    assert found["dermlens_batch_rows", ""] == 50 and found["dermlens_batch_error_rows", ""] == 3
    assert found["dermlens_batch_done_ratio", ""] == 0.5 and found["dermlens_batch_run_rows", ""] == 40
    assert found["dermlens_batch_state", "interrupted"] == 1 and found["dermlens_batch_state", "running"] == 0


def test_a_finished_batch_is_done_whatever_its_tar_shards_were_estimated_to_hold() -> None:
    assert Status(total=100, weight=98.6, name="finished").values()["done_ratio"] == 1.0


def test_metrics_that_cannot_be_written_stop_the_start_and_are_noted_once_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match="metrics file"),
        Monitor(None, tmp_path / "file" / "b.prom", {}).watch(Status(1)),
    ):
        pass
    stream, folder = io.StringIO(), tmp_path / "new" / "folder"
    monkeypatch.setattr(progress, "METRICS_EVERY_S", 0.0)
    monitor, status = Monitor(stream, folder / "b.prom", {"shard": "1/1"}), Status(1)
    with monitor.watch(status):
        assert [path.name for path in folder.iterdir()] == ["b.prom"]
        (folder / "b.prom").unlink()
        folder.rmdir()
        folder.touch()
        monitor.refresh(status)
        monitor.refresh(status)
        status.name = "finished"
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["batch.started", "batch.note", "batch.finished"]


def test_nobody_sees_half_a_metrics_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector reads every *.prom of its folder, hidden ones too."""
    seen: list[list[Path]] = []
    write = Path.write_text

    def look(path: Path, text: str, **options: str) -> int:
        written = write(path, text, **options)
        seen.append(list(tmp_path.glob("**/*.prom")))
        return written

    monkeypatch.setattr(Path, "write_text", look)
    with Monitor(None, tmp_path / "b.prom", {}).watch(Status(1)):
        pass
    assert seen == [[], [tmp_path / "b.prom"]]


def test_progress_is_reported_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, status = io.StringIO(), Status(10)
    monitor = Monitor(stream, tmp_path / "b.prom", {})
    with monitor.watch(status):
        monitor.refresh(status)
        assert len(stream.getvalue().splitlines()) == 1
        monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
        monkeypatch.setattr(progress, "METRICS_EVERY_S", 0.0)
        status.rows = 3
        monitor.refresh(status)
        line = json.loads(stream.getvalue().splitlines()[1])
        assert line["event"] == "batch.progress" and line["run_rows"] == 3 and line["level"] == "info"
        assert parsed((tmp_path / "b.prom").read_text())["dermlens_batch_run_rows", ""] == 3
