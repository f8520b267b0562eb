"""Ctrl-C, or the SIGTERM of a scheduler: noted, so that work ends between two answers and keeps what is done.

Ctrl-C between two steps, never inside one.
"""

from __future__ import annotations

import contextlib
import os
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


@dataclass
class Interrupt:
    """`wanted` turns True at the first Ctrl-C; the second one raises KeyboardInterrupt as always."""

    wanted: bool = False


def _say(line: bytes) -> None:
    """Write to the terminal past every buffer: a signal handler must not enter one that is being written to."""
    with contextlib.suppress(OSError):
        os.write(2, line)


@contextmanager
def defer_interrupt() -> Iterator[Interrupt]:
    """Note Ctrl-C instead of raising it; in another thread than the main one nothing changes."""
    state = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: object) -> None:
        if state.wanted:
            signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt
        state.wanted = True
        _say(b"\nStopping after this step (an epoch that has ended is scored first). Ctrl-C again stops at once.\n")

    signal.signal(signal.SIGINT, note)
    try:
        yield state
    finally:
        signal.signal(signal.SIGINT, before)
