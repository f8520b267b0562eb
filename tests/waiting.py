"""Waiting for another process: until something has happened, but not for ever."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

WITHIN_S = 180


def until(happened: Callable[[], bool], process: subprocess.Popen[Any], *, within_s: float = WITHIN_S) -> None:
    """Wait until it has happened or the process has ended.

    Raises:
        TimeoutError: neither came; the process has been killed.
    """
    deadline = time.monotonic() + within_s
    while not happened() and process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise TimeoutError(f"Nothing happened within {within_s:.0f} s: {process.args}")
        time.sleep(0.02)


def until_refused(port: int, *, within_s: float = WITHIN_S) -> None:
    """Wait until nothing on this machine accepts connections at a port. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"Port {port} still accepts connections after {within_s:.0f} s.")
