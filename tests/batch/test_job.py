"""Batch: a row for every input, the rows of `predict`, in parts that a kill at any moment neither loses nor doubles."""

from __future__ import annotations

import _thread
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny
from dermlens import Predictor
from dermlens.batch.job import Progress, Settings, Summary, open_job, run_job, run_local
from dermlens.batch.output import Folder, PartWriter
from dermlens.errors import StorageError, UsageError
from dermlens.signals import Stop

NAMES = [f"{index:03d}.png" for index in range(23)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "b")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images, of which one is broken and one empty."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, name in enumerate(NAMES):
        cv2.imwrite(str(folder / name), tiny.colour(tiny.CODES[index % 3])[:, :, ::-1])
    (folder / NAMES[4]).write_text("not an image")
    (folder / NAMES[9]).write_bytes(b"")
    return folder


def batch(inputs: Any, out: Any, model: Path, **options: Any) -> Summary:
    names = [inputs] if isinstance(inputs, str | Path) else inputs
    with open_job(names, out, model=model, **options) as job:
        return run_job(job)


def answers(out: Path) -> Any:
    return pd.read_parquet(out).sort_values("image").reset_index(drop=True)


def manifest(out: Path) -> Any:
    return json.loads((out / "_manifest.json").read_text())


def test_pandas_reads_one_row_for_every_input_with_the_answers_of_predict(
    pictures: Path, model: Path, tmp_path: Path
) -> None:
    summary = batch(pictures, tmp_path / "out", model, settings=Settings(part_rows=10, embedding=True))
    assert (summary.finished, summary.rows, summary.errors, summary.parts) == (True, 23, 2, 3)
    table = pd.read_parquet(tmp_path / "out")
    expected = list(Predictor(model).predict_many([str(pictures / name) for name in NAMES]))
    assert list(table.image) == [answer.image for answer in expected]
    for values, answer in zip(table.to_dict("records"), expected, strict=True):
        assert values["status"] == answer.status and values["model_sha256"] == answer.model["sha256"]
        if answer.error is not None:
            assert values["error_code"] == answer.error["code"] and values["error_message"] == answer.error["message"]
            assert values["embedding"] is None and pd.isna(values["probability_RED"])
        else:
            assert values["diagnosis_code"] == answer.diagnosis_code and pd.isna(values["error_code"])
            assert values["probability_RED"] == round(answer.probabilities["RED"], 6)
            assert list(values["embedding"]) == list(answer.embedding)  # type: ignore[arg-type]
    state = manifest(tmp_path / "out")
    assert (state["state"], state["rows"], state["errors"]) == ("finished", 23, 2)
    assert [part["rows"] for part in state["parts"]] == [10, 10, 3]


def test_a_batch_is_not_overwritten_and_another_one_is_not_gone_on_with(
    pictures: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    batch(pictures, out, model)
    with pytest.raises(UsageError, match="--resume"):
        batch(pictures, out, model)
    assert batch(pictures, out, model, resume=True).new_rows == 0
    other = tiny.write(tmp_path / "other", version="0.0.2")
    with pytest.raises(UsageError, match=r"model version was 0\.0\.1, now 0\.0\.2"):
        batch(pictures, out, other, resume=True)
    with pytest.raises(UsageError, match="settings part_rows was 10000, now 7"):
        batch(pictures, out, model, resume=True, settings=Settings(part_rows=7))
    with pytest.raises(UsageError, match="inputs sources was 23, now 1"):
        batch(pictures / NAMES[0], out, model, resume=True)
    with pytest.raises(UsageError, match="shard count was 1, now 2"):
        batch(pictures, out, model, resume=True, shard=(1, 2))
    assert len(pd.read_parquet(out)) == 23


def test_resume_starts_where_there_is_nothing(pictures: Path, model: Path, tmp_path: Path) -> None:
    assert batch(pictures, tmp_path / "out", model, resume=True).rows == 23


def test_two_processes_do_not_work_on_one_folder(pictures: Path, model: Path, tmp_path: Path) -> None:
    with (
        open_job([str(pictures)], tmp_path / "out", model=model),
        pytest.raises(UsageError, match="Another process"),
    ):
        batch(pictures, tmp_path / "out", model, resume=True)


def test_parts_appear_while_it_runs_and_a_stop_keeps_every_answer(pictures: Path, model: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []

    def report(progress: Progress) -> None:
        seen.append(len(list(out.glob("part-*.parquet"))))
        if len(seen) == 13:
            _thread.interrupt_main()

    with open_job([str(pictures)], out, model=model, settings=Settings(part_rows=5)) as job:
        summary = run_job(job, report=report)
    assert not summary.finished and summary.rows == 13 == len(pd.read_parquet(out))
    assert seen[-1] == 2 and manifest(out)["state"] == "interrupted"
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]
    summary = batch(pictures, out, model, settings=Settings(part_rows=5), resume=True)
    assert summary.finished and summary.new_rows == 10
    assert list(answers(out).image) == [str(pictures / name) for name in NAMES]


def test_every_shard_takes_its_share_into_the_same_folder(pictures: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counts = [batch(pictures, out, model, shard=(index, 3)).rows for index in (1, 2, 3)]
    assert sorted(counts) == [7, 8, 8]
    assert list(answers(out).image) == [str(pictures / name) for name in NAMES]
    with pytest.raises(UsageError, match="1/n to n/n"):
        batch(pictures, tmp_path / "x", model, shard=(0, 3))


def test_parts_that_are_gone_damaged_or_unrecorded_are_put_right(pictures: Path, model: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", Settings(part_rows=4)
    batch(pictures, out, model, settings=settings)
    parts = sorted(out.glob("part-*.parquet"))
    parts[1].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[:-9])
    state = manifest(out)
    state["parts"] = [part for part in state["parts"] if part["file"] != parts[3].name]  # killed before it was recorded
    (out / "_manifest.json").write_text(json.dumps(state))
    (out / f".{parts[0].name}.1234.tmp").write_bytes(b"half")
    (out / "._manifest.json.1234.tmp").write_bytes(b"half")
    summary = batch(pictures, out, model, settings=settings, resume=True)
    assert summary.finished and summary.new_rows == 8
    assert list(answers(out).image) == [str(pictures / name) for name in NAMES]
    assert not list(out.glob(".*.tmp"))


def test_a_part_of_another_batch_is_not_taken_up(pictures: Path, model: Path, tmp_path: Path) -> None:
    batch(pictures, tmp_path / "a", model)
    batch(pictures / NAMES[0], tmp_path / "b", model)
    part = next((tmp_path / "b").glob("part-*.parquet"))
    (tmp_path / "a" / part.name.replace("000000-", "000009-", 1)).write_bytes(part.read_bytes())
    with pytest.raises(UsageError, match="belongs to another batch"):
        batch(pictures, tmp_path / "a", model, resume=True)


def test_a_full_disk_is_told_and_keeps_what_is_finished(
    pictures: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace, left = tmp_path / "out", os.replace, iter([1, 1, 1, 1])

    def full(source: str, target: str) -> None:
        if "part-" in str(target) and next(left, None) is None:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        batch(pictures, out, model, settings=Settings(part_rows=4))
    monkeypatch.undo()
    assert len(pd.read_parquet(out)) == 16 and manifest(out)["state"] == "interrupted"
    assert not list(out.glob(".*.tmp"))
    assert batch(pictures, out, model, settings=Settings(part_rows=4), resume=True).new_rows == 7


class Killed(BaseException):
    """The end of a process, in this one: nothing is written after it."""


def visible(out: Path) -> int:
    """Return how many rows a reader of the folder finds."""
    return sum(pq.read_metadata(path).num_rows for path in out.glob("part-*.parquet"))


def run_until(
    moments: Iterator[bool], inputs: list[str], out: Path, model: Path, part_rows: int = 10_000
) -> tuple[bool, int]:
    """Run a batch by a clock on which an answer takes a second, until a moment is True.

    Returns:
        Whether it was finished, and the most rows that were answered and not yet visible.
    """
    answered, unseen = 0, [0]

    def report(progress: Progress) -> None:
        nonlocal answered
        answered += 1
        unseen.append(before + answered - visible(out))
        if next(moments):
            raise Killed

    with open_job(inputs, out, model=model, settings=Settings(part_rows), resume=True) as job:
        before = job.ledger.rows
        with suppress(Killed):
            return run_local(job, Stop(), report, lambda: float(answered)), max(unseen)
    return False, max(unseen)


def test_rows_are_visible_within_ten_seconds_however_large_a_part_is(
    pictures: Path, model: Path, tmp_path: Path
) -> None:
    out, seen = tmp_path / "out", set[int]()
    moments = (seen.add(visible(out)) is not None for _ in repeat(None))  # type: ignore[func-returns-value]
    names = [str(pictures / NAMES[index % 23]) for index in range(60)]
    finished, unseen = run_until(moments, names, out, model)
    assert finished and unseen <= 8
    assert sorted(seen) == [0, 2, 3, 5, 9, 17, 25, 33, 41, 49, 57]
    assert list(pd.read_parquet(out).image) == names and len(list(out.glob("part-*"))) == 1


@pytest.mark.parametrize(("kind", "part_rows"), [("files", 10_000), ("tar", 7)])
def test_kills_cost_ten_seconds_and_neither_lose_nor_double_a_row(
    kind: str, part_rows: int, pictures: Path, model: Path, tmp_path: Path
) -> None:
    """Between two answers, before a part takes its place and right after that."""
    inputs, out, rng, kills = [str(pictures / name) for name in NAMES * 2], tmp_path / "out", random.Random(3), 0
    if kind == "tar":
        with tarfile.open(tmp_path / "s.tar", "w") as tar:
            for index, path in enumerate(inputs):
                tar.add(path, f"{index:03d}.png")
        inputs = [str(tmp_path / "s.tar")]
    replace, finished, rows = os.replace, False, 0

    def dying(source: Any, target: Any) -> None:
        fate = rng.random() if "part-" in str(target) else 1.0
        if fate > 0.1:
            replace(source, target)
        if fate < 0.2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", dying)
        while not finished:
            assert kills < 200
            finished, unseen = run_until((rng.random() < 0.08 for _ in repeat(None)), inputs, out, model, part_rows)
            kills += not finished
            assert unseen <= 8 and visible(out) >= rows, "a kill cost more than it may"
            rows = visible(out)
    whole = tmp_path / "whole"
    batch(inputs, whole, model, settings=Settings(part_rows))
    assert kills > 2 and sorted(os.listdir(out)) == sorted(os.listdir(whole))
    pd.testing.assert_frame_equal(*(pd.read_parquet(folder).drop(columns="elapsed_ms") for folder in (out, whole)))


@pytest.mark.long
@pytest.mark.parametrize("part_rows", [37, 10_000])
def test_kill_9_at_random_moments_neither_loses_nor_doubles_a_row(
    part_rows: int, pictures: Path, model: Path, tmp_path: Path
) -> None:
    """Again and again, from the first second of the process to the writing of parts."""
    listing, out = tmp_path / "list.txt", tmp_path / "out"
    names = [str(pictures / NAMES[index % 23]) for index in range(40_000)]
    listing.write_text("".join(f"{name}\n" for name in names))
    command = [sys.executable, "-m", "dermlens", "batch", str(listing), "--out", str(out), "--model", str(model)]
    command += ["--resume", "--part-rows", str(part_rows)]
    rng, rows = random.Random(7), [0]
    for _ in range(20):
        process = subprocess.Popen(command)  # pytest captures what it prints
        try:
            process.wait(timeout=rng.uniform(0.5, 6.0))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)
        rows.append(visible(out))
    assert len(rows) > 3 and rows == sorted(rows) and rows[-1] > 0, "a visible row was lost"
    assert subprocess.run(command, timeout=300, check=False).returncode == 0
    assert sorted(pd.read_parquet(out).image) == sorted(names)


def test_a_worker_that_comes_late_takes_no_row_back(tmp_path: Path) -> None:
    folder, schema = Folder.of(str(tmp_path / "out")), pa.schema([("status", pa.string()), ("n", pa.int64())])
    late, quick = (PartWriter(folder, schema, "job", 0, 0, 100) for _ in range(2))
    answer = SimpleNamespace(status="ok")
    for writer, rows in ((late, 3), (quick, 9)):
        for n in range(rows):
            writer.add(answer, {"status": "ok", "n": n})  # type: ignore[arg-type]
    assert quick.publish(last=True).rows == 9
    assert late.publish(last=False).rows == 9, "what is there is further on"
    assert pq.read_table(tmp_path / "out").num_rows == 9
