"""Calls and commands in a process of their own: what they return, their time, and their peak memory (Linux)."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT


@dataclass(frozen=True)
class Fresh:
    """What a call in a process of its own gave: its value, as JSON can hold it, seconds, and peak memory in MB."""

    value: Any
    seconds: float
    peak_mb: float


def fresh(call: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None) -> Fresh:
    """Call a function of a module with arguments that JSON can hold.

    Raises:
        SystemExit: the process failed; what it printed stands above.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        words = [call.__module__, call.__name__, json.dumps(arguments, default=str), str(out)]
        command = [sys.executable, "-m", "benchmarks.fresh", *words]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, check=False)
        seconds = time.perf_counter() - start
        if done.returncode or not out.is_file():
            raise SystemExit(f"{call.__module__}.{call.__name__} ended with status {done.returncode}.")
        found = json.loads(out.read_text(encoding="utf-8"))
    return Fresh(found["value"], seconds, found["peak_mb"])


@dataclass(frozen=True)
class Spent:
    """What a command took: seconds of the clock and of the processor, and peak memory in MB."""

    seconds: float
    processor_s: float
    peak_mb: float


def spent(command: list[str]) -> Spent:
    """Run a command in silence and return what it took.

    Raises:
        SystemExit: it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}.")
    return Spent(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def memory_mb(which: str = "VmHWM", process: int | str = "self") -> float:
    """Return the peak (`VmHWM`) or present (`VmRSS`) resident memory of a process in MB.

    `ru_maxrss` would count the process that started this one.
    """
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


if __name__ == "__main__":
    module, name, given, place = sys.argv[1:]
    answer = getattr(importlib.import_module(module), name)(*json.loads(given))
    Path(place).write_text(json.dumps({"value": answer, "peak_mb": memory_mb()}, default=float), encoding="utf-8")
