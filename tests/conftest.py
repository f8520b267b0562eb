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
_data_tests = pytest.StashKey[list[str]]()
_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_data_tests] = []
    told = sys.__stderr__ or sys.__stdout__  # either may be closed
    config.stash[_stderr] = os.dup(told.fileno()) if told else os.open(os.devnull, os.O_WRONLY)  # before it is captured
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
    """Leave out the data tests when there is no data; remember them for the summary (after -m has chosen)."""
    marked = [item for item in items if item.get_closest_marker("data")]
    config.stash[_data_tests] = [item.nodeid for item in marked]
    if not os.environ.get(VARIABLE):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs {VARIABLE}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    names = config.stash[_data_tests]
    if not names:
        return
    if os.environ.get(VARIABLE):
        reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
        ran = {report.nodeid for report in reports}
        terminalreporter.write_line(f"data tests run: {', '.join(name for name in names if name in ran) or 'none'}")
    else:
        terminalreporter.write_line(f"{len(names)} tests need {VARIABLE} and were not run: {', '.join(names)}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what dermlens caches, and models it adds, out of the user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DERMLENS_CACHE", str(tmp_path_factory.mktemp("dermlens-cache")))
        patch.setenv("DERMLENS_MODELS", str(tmp_path_factory.mktemp("dermlens-models")))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder with ham10000/, isic9/ and isic_reference.csv; only for tests marked `data`."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise pytest.UsageError(f"A test that takes data_dir must be marked `data`: {VARIABLE} is not set.")
    return Path(folder).resolve()
