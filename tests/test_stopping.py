"""A signal is noted, the second one is obeyed, and the handlers of before are put back."""

from __future__ import annotations

import _thread
import signal
import threading

import pytest

from dermlens.signals import Stop, held_back


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_obeyed(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with held_back() as stop:
        _thread.interrupt_main(number)
        assert stop.wanted
        with pytest.raises(KeyboardInterrupt):
            _thread.interrupt_main(number)
    assert signal.getsignal(number) is before


def test_in_another_thread_nothing_changes() -> None:
    found: list[Stop] = []

    def work() -> None:
        with held_back() as stop:
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert not found[0].wanted
