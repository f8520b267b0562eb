"""Progress of a batch: rate, failures and time left, from weights where the number of images is not known."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dermlens.batch import progress


def test_a_log_gets_rate_failures_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    out = io.StringIO()
    with progress.track_batch(1000.0, 200.0, Console(file=out, width=100)) as advance:
        for step in range(4):
            now = 10.0 * (step + 1)
            advance(100, 1, 100.0)
    assert out.getvalue().splitlines() == ["Batch: 50.0%, 300 images, 3 failed, 10 images/s, 50 s left"]


def test_a_terminal_gets_a_bar_that_starts_where_the_last_run_ended() -> None:
    out = io.StringIO()
    with progress.track_batch(10.0, 5.0, Console(file=out, force_terminal=True, width=120)) as advance:
        advance(2, 0, 2.5)
    assert "75%" in out.getvalue() and "images/s" in out.getvalue() and "failed" not in out.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (600, "10 min"), (9000, "2.5 h")])
def test_time_left_is_readable(seconds: float, text: str) -> None:
    assert progress._duration(seconds) == text
