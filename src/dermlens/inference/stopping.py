"""Ctrl-C, or the SIGTERM of a scheduler: noted, so that work ends between two answers and keeps what is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """`wanted` turns True at the first signal."""

    wanted: bool = False


@contextmanager
def held_back() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of obeying; the second one raises KeyboardInterrupt.

    In another thread than the main one nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.wanted:
            raise KeyboardInterrupt
        stop.wanted = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
