"""A signal is noted, the second one is obeyed, and the handlers of before are put back."""

from __future__ import annotations

import _thread
import signal
import threading

import pytest

from dermlens.signals import defer_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_obeyed(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with defer_interrupt() as stop:
        assert not stop.requested
        _thread.interrupt_main(number)  # as a signal does, but with no frame on a signal stack (pyproject.toml)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            _thread.interrupt_main(number)
    assert signal.getsignal(number) is before


def test_the_notice_goes_to_standard_error_past_every_buffer(capfd: pytest.CaptureFixture[str]) -> None:
    with defer_interrupt("Stopping after this step.\n"):
        assert not capfd.readouterr().err
        _thread.interrupt_main(signal.SIGINT)
        assert capfd.readouterr().err == "Stopping after this step.\n"


def test_in_another_thread_nothing_changes() -> None:
    seen: list[object] = []

    def work() -> None:
        with defer_interrupt() as stop:
            seen.extend([stop.requested, signal.getsignal(signal.SIGINT)])

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert seen == [False, before]
