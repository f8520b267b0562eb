"""Ctrl-C between two steps, never inside one."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Interrupt:
    """`wanted` turns True at the first Ctrl-C; the second one raises KeyboardInterrupt as always."""

    wanted: bool = False


def _say(line: bytes) -> None:
    """Write to the terminal past every buffer: a signal handler must not enter one that is being written to."""
    with contextlib.suppress(OSError):
        os.write(2, line)


@contextmanager
def held_back() -> Iterator[Interrupt]:
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
