"""What all tests share: the data folder, a last line saying which data-marked tests ran, and an end to all waiting."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

VARIABLE = "DERMLENS_DATA"
DEADLINE_S, LONG_DEADLINE_S = 30 * 60, 4 * 3600  # of one test with its fixtures; no test comes near
ONE_THREAD = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
LONGEST_FIRST = (
    "tests/training/",
    "tests/networks/",
    "tests/cluster/",
    "tests/test_notebook",
    "tests/docs/",
    "tests/export/",
)
_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the processor: one thread each, for what they start too
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    terminal = sys.__stderr__ or sys.__stdout__  # either may be closed
    config.stash[_stderr] = (
        os.dup(terminal.fileno()) if terminal else os.open(os.devnull, os.O_WRONLY)
    )  # before it is captured
    folder = os.environ.get(VARIABLE)
    if folder and not Path(folder).is_dir():
        raise pytest.UsageError(f"{VARIABLE} is {folder}, which is no folder. Correct it, or unset it.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End the run, saying where every thread stands, when a test waits for ever; by a thread, without a signal."""
    deadline_s = LONG_DEADLINE_S if item.get_closest_marker("long") else DEADLINE_S
    faulthandler.dump_traceback_later(deadline_s, exit=True, file=item.config.stash[_stderr])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the data tests when there is no data; keep a file's tests in one worker, the longest files first."""
    for item in items:
        if item.get_closest_marker("data"):
            item.user_properties.append(("needs", "data"))  # its report says so in the process that sums up
            if not os.environ.get(VARIABLE):
                item.add_marker(pytest.mark.skip(reason=f"needs {VARIABLE}"))
        if not item.get_closest_marker("xdist_group"):  # so that what a file sets up is set up once
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(config.rootpath).as_posix()))
    items.sort(key=lambda item: _rank(item.path.relative_to(config.rootpath).as_posix()))


def _rank(path: str) -> int:
    """Return how early a file begins: with two workers, a long file at the end leaves one of them idle."""
    return next((rank for rank, start in enumerate(LONGEST_FIRST) if path.startswith(start)), len(LONGEST_FIRST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = [r for kind in ("passed", "failed", "skipped") for r in terminalreporter.stats.get(kind, [])]
    names = sorted(
        {report.nodeid.partition("@")[0] for report in reports if ("needs", "data") in report.user_properties}
    )
    if names and os.environ.get(VARIABLE):
        terminalreporter.write_line(f"data tests run: {', '.join(names)}")
    elif names:
        terminalreporter.write_line(f"{len(names)} tests need {VARIABLE} and were not run: {', '.join(names)}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what dermlens caches, and models it adds, out of the user's folders; all workers share one cache."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DERMLENS_CACHE", str(shared / "dermlens-cache"))
        patch.setenv("DERMLENS_MODELS", str(tmp_path_factory.mktemp("dermlens-models")))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder with ham10000/, isic9/ and isic_reference.csv; only for tests marked `data`."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise pytest.UsageError(f"A test that takes data_dir must be marked `data`: {VARIABLE} is not set.")
    return Path(folder).resolve()
