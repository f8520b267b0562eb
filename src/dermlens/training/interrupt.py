"""Ctrl-C between two steps, never inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Interrupt:
    """`wanted` turns True at the first Ctrl-C; the second one raises KeyboardInterrupt as always."""

    wanted: bool = False


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

    signal.signal(signal.SIGINT, note)
    try:
        yield state
    finally:
        signal.signal(signal.SIGINT, before)
