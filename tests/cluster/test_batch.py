"""The Ray engine: the same rows in the same schema as one process, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
import pytest

import tiny
from dermlens.batch.job import Progress, Settings, Summary, answer, open_job, run_job
from dermlens.cluster import batch as ray_module
from dermlens.cluster.batch import ray_engine
from dermlens.errors import DermlensError, StorageError, UsageError
from dermlens.inference.predictor import Predictor
from dermlens.signals import Stop
from ray_nodes import cluster_of_two, workers

import psutil  # isort: skip  # inside Ray: found once Ray is imported

pytestmark = pytest.mark.xdist_group("ray")

SETTINGS = Settings(part_rows=25, embedding=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "b")


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    """2,000 names of nine images, one of them broken and one missing."""
    for index in range(8):
        cv2.imwrite(str(tmp_path / f"{index}.png"), tiny.colour(tiny.CODES[index % 3])[:, :, ::-1])
    (tmp_path / "5.png").write_text("not an image")
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{index % 9}.png\n" for index in range(2_000)))
    return path


def batch(listing: Path, out: Path, model: Path, engine: Any = None, **options: Any) -> Summary:
    report = options.pop("report", lambda progress: None)
    options = {"settings": SETTINGS, **options}
    with open_job([str(listing)], out, model=model, **options) as job:
        return run_job(job, engine, report)


def answers(out: Path) -> Any:
    """Return the rows in the order of the parts, without the time each took."""
    return pd.read_parquet(out).drop(columns="elapsed_ms")


def check_same(out: Path, listing: Path, model: Path, tmp_path: Path) -> None:
    batch(listing, tmp_path / "local", model)
    local, ray_rows = answers(tmp_path / "local"), answers(out)
    assert len(ray_rows) == 2_000
    embedding = [None if row is None else list(row) for row in local.pop("embedding")]
    assert [None if row is None else list(row) for row in ray_rows.pop("embedding")] == embedding
    pd.testing.assert_frame_equal(local, ray_rows)


def test_ray_gives_the_rows_of_one_process(two_nodes: str, listing: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="one process"):
        batch(listing, "memory://ray-out", model, ray_engine(two_nodes, 1))  # type: ignore[arg-type]
    reports: list[Progress] = []
    summary = batch(listing, out, model, ray_engine(two_nodes, 1), report=reports.append)
    assert summary.finished and summary.rows == 2_000 and summary.errors == 2 * 222
    assert sum(progress.rows for progress in reports) == 2_000
    assert reports[0].rows == 0, "it gives signs of life while no unit is finished"
    check_same(out, listing, model, tmp_path)


def test_a_repeated_unit_continues_and_leaves_no_row_twice_whoever_writes_last(
    listing: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that Ray gave up is still alive: it writes beside the one that has its unit now, and after it."""
    out, settings, seconds = tmp_path / "out", Settings(part_rows=300), iter(range(10_000))
    monkeypatch.setattr(ray_module, "fetch", lambda shared: shared[0])
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    with open_job([str(listing)], out, model=model, settings=settings) as job:
        unit, _ = next(job.work())
        common = (settings, job.ledger.folder, job.ledger.job)
        nothing: Any = lambda progress: None  # noqa: E731
        clock = lambda: float(next(seconds))  # noqa: E731
        lost = answer(Predictor(model), [(unit, 0)], *common, Stop(), nothing, clock)
        early = next(islice(lost, 3, None))
        assert 0 < early.rows < 100
        asked: list[int] = []
        real = ray_module.answer
        monkeypatch.setattr(
            ray_module, "answer", lambda p, work, *more: asked.append(work[0][1]) or real(p, work, *more)
        )
        worker = ray_module._Worker(*common, os.getcwd())
        (whole,) = worker.answer([files], unit, 0)
        assert asked == [early.rows] and whole.file == early.file and (whole.rows, whole.last) == (300, True)
        assert worker.answer([files], unit, 0) == [whole] and asked == [early.rows], "there is nothing left to do"
        job.ledger.record(whole)
        assert next(lost) == whole, "the late worker leaves the part that is further on"
        job.ledger.rescan()
        assert job.ledger.rows == whole.rows and job.ledger.progress(unit.number) == (whole.rows, True)
    assert batch(listing, out, model, settings=settings, resume=True).finished
    images = [str(tmp_path / f"{index % 9}.png") for index in range(2_000)]
    assert list(pd.read_parquet(out).image) == images


@pytest.mark.long
def test_a_dead_worker_is_survived_on_two_nodes(two_nodes: str, listing: Path, model: Path, tmp_path: Path) -> None:
    out, killed = tmp_path / "out", []

    def kill_one(progress: Progress) -> None:
        there = [worker for worker in workers() if worker.pid not in {pid for pid, _ in killed}]
        if progress.rows and there and len(killed) < 2:
            victim = there[0]
            killed.append((victim.pid, len(list(out.glob("part-*")))))
            victim.kill()

    summary = batch(listing, out, model, ray_engine(two_nodes, 2), report=kill_one)
    assert summary.finished and len({pid for pid, _ in killed}) == 2
    assert all(parts < summary.parts for _, parts in killed), "it was killed when all was done"
    check_same(out, listing, model, tmp_path)


@pytest.mark.long
def test_a_lost_node_is_survived(no_cluster: None, listing: Path, model: Path, tmp_path: Path) -> None:
    """Its worker can only start anew on the core that the other one gives free at the end."""
    out, lost = tmp_path / "out", list[int]()

    with cluster_of_two() as (cluster, second):

        def lose_it(progress: Progress) -> None:
            if len(list(out.glob("part-*"))) >= 20 and not lost:
                lost.append(len(list(out.glob("part-*"))))
                cluster.remove_node(second, allow_graceful=False)

        summary = batch(listing, out, model, ray_engine(cluster.address, 2), report=lose_it)
    assert summary.finished and lost[0] < summary.parts
    check_same(out, listing, model, tmp_path)


@pytest.mark.long
def test_a_stop_keeps_the_parts_and_either_engine_continues(
    no_cluster: None, listing: Path, model: Path, tmp_path: Path
) -> None:
    """On a cluster that the engine starts for itself."""
    out = tmp_path / "out"

    def interrupt(progress: Progress) -> None:
        if progress.rows and not interrupted:
            interrupted.append(os.kill(os.getpid(), signal.SIGTERM))

    interrupted: list[None] = []
    summary = batch(listing, out, model, ray_engine(None, 2), report=interrupt)
    assert not summary.finished and 25 <= summary.rows < 2_000
    assert json.loads((out / "_manifest.json").read_text())["state"] == "interrupted"
    assert batch(listing, out, model, resume=True).finished
    check_same(out, listing, model, tmp_path)


@pytest.mark.long
def test_what_ends_every_worker_is_an_error_in_the_end_and_costs_nothing_else(
    two_nodes: str, listing: Path, model: Path, tmp_path: Path
) -> None:
    """As if a file of the first unit ended each process that opens it."""
    out, done = tmp_path / "out", threading.Event()
    names = listing.read_text()
    listing.write_text(names * 10)

    def kill_all_that_work() -> None:
        while not done.wait(0.01):
            for process in workers():
                with suppress(psutil.Error):
                    if "answer" in process.cmdline()[0]:
                        process.kill()

    killer = threading.Thread(target=kill_all_that_work)
    killer.start()
    try:
        with (
            open_job([str(listing)], out, model=model, settings=Settings(part_rows=30_000)) as job,
            pytest.raises(DermlensError, match="1 units ended their worker 4 times"),
        ):
            run_job(job, ray_engine(two_nodes, 1))
    finally:
        done.set()
        killer.join(60)
    assert json.loads((out / "_manifest.json").read_text())["state"] == "interrupted"
    assert not [name for name in os.listdir(out) if name.startswith((".part", "part"))]


@pytest.mark.long
def test_what_stops_a_worker_is_the_error_of_one_process(
    two_nodes: str, listing: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with open_job([str(listing)], out, model=model, settings=SETTINGS) as job:
        (out / job.ledger.folder.part_name(1, 0)).mkdir()  # a folder stands where the second part belongs
        with pytest.raises(StorageError, match="cannot be written"):
            run_job(job, ray_engine(two_nodes, 1))
    assert json.loads((out / "_manifest.json").read_text())["state"] == "interrupted"


def test_a_cluster_that_is_not_there_is_an_error(no_cluster: None, listing: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not answer"):
        batch(listing, tmp_path / "a", model, ray_engine("127.0.0.1:1", 1))
