"""Ctrl-C, or the SIGTERM of a scheduler: noted, so that work ends between two steps and loses nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """`requested` turns True at the first signal."""

    requested: bool = False


@contextmanager
def defer_interrupt(notice: str = "") -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of obeying them; the second signal raises KeyboardInterrupt.

    In another thread than the main one nothing changes.

    Args:
        notice: printed to standard error at the first signal, past every buffer: a signal handler must not enter one
            that is being written to.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        with suppress(OSError):
            os.write(2, notice.encode())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
