"""Ctrl-C is noted once and raised the second time; what was there before comes back."""

from __future__ import annotations

import _thread
import signal
import threading

import pytest

from dermlens.signals import defer_interrupt


def ctrl_c() -> None:
    _thread.interrupt_main()  # as Ctrl-C does, but with no frame on a signal stack (pyproject.toml)


def test_the_first_is_noted_the_second_raised_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with defer_interrupt() as state:
        assert not state.wanted
        ctrl_c()
        assert state.wanted
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_nothing_changes() -> None:
    seen: list[object] = []

    def work() -> None:
        with defer_interrupt() as state:
            seen.extend([state.wanted, signal.getsignal(signal.SIGINT)])

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert seen == [False, before]
