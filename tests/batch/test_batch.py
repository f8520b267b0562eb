"""Batch: a row for every input, the rows of `predict`, in parts that a kill at any moment neither loses nor doubles."""

from __future__ import annotations

import _thread
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
import pytest

import tiny
import waiting
from dermlens import Predictor
from dermlens.batch.job import Job, Progress, Settings, Summary, open_job, run_job
from dermlens.errors import StorageError, UsageError

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
    with pytest.raises(UsageError, match="of another batch"):
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


@contextmanager
def _running(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "dermlens", *arguments])  # pytest keeps what it says
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=60)


@pytest.mark.long
def test_killed_at_random_moments_it_loses_no_row_and_doubles_none(pictures: Path, model: Path, tmp_path: Path) -> None:
    """kill -9 again and again, from the first second of the process to the writing of parts."""
    listing, out = tmp_path / "list.txt", tmp_path / "out"
    listing.write_text("".join(f"{pictures / NAMES[index % 23]}\n" for index in range(20_000)))
    command = ["batch", str(listing), "--out", str(out), "--model", str(model), "--part-rows", "37", "--resume"]
    rng, kills, rows = random.Random(7), 0, [0]
    while kills < 60:
        with _running(command) as process:
            time.sleep(rng.uniform(0.3, 2.0))
            process.send_signal(signal.SIGKILL)
            if process.wait(timeout=60) == 0:
                break
        kills += 1
        if out.exists() and list(out.glob("part-*")):
            rows.append(len(pd.read_parquet(out)))
    assert rows == sorted(rows), "a finished row was lost"
    assert subprocess.run([sys.executable, "-m", "dermlens", *command], timeout=300, check=False).returncode == 0
    found = pd.read_parquet(out).image.value_counts()
    expected = pd.Series([str(pictures / NAMES[index % 23]) for index in range(20_000)]).value_counts()
    assert kills >= 3 and found.sort_index().to_dict() == expected.sort_index().to_dict()


def test_one_kill_loses_no_row(pictures: Path, model: Path, tmp_path: Path) -> None:
    listing, out = tmp_path / "list.txt", tmp_path / "out"
    listing.write_text("".join(f"{pictures / NAMES[index % 23]}\n" for index in range(20_000)))
    command = ["batch", str(listing), "--out", str(out), "--model", str(model), "--part-rows", "50", "--resume"]
    with _running(command) as process:
        waiting.until(lambda: len(list(out.glob("part-*"))) >= 3, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    before = len(pd.read_parquet(out))
    assert before >= 150
    with open_job([str(listing)], out, model=model, settings=Settings(part_rows=50), resume=True) as job:
        _check_that_the_rest_is_exact(job, before, [str(pictures / NAMES[index % 23]) for index in range(20_000)])


def _check_that_the_rest_is_exact(job: Job, before: int, names: list[str]) -> None:
    assert job.ledger.rows == before
    left = [source.path for unit, skip in job.work() for source in unit.sources[skip:]]
    assert sorted(left + list(pd.read_parquet(job.ledger.folder.path).image)) == sorted(names)
