"""Progress in a log: a line now and then with rate and time left, and one at the end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dermlens.reporting import progress


def test_a_log_gets_the_last_line_and_those_between(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    out = io.StringIO()
    with progress.track("Reading", 10, Console(file=out, width=100)) as advance:
        for _ in range(10):
            advance(1)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("Reading: 3 of 10 (0.1 images/s") and "min left" in lines[0]
    assert lines[-1].startswith("Reading: 10 of 10")
    assert len(lines) == 4


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    with progress.track("Reading", 3, Console(file=out, force_terminal=True, width=100)) as advance:
        advance(3)
    assert "3/3" in out.getvalue() and "images/s" in out.getvalue()
