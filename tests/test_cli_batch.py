"""`dermlens batch` as a person uses it: what it says, its exit codes, one line for a mistake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pandas as pd
import pytest

import tiny
import waiting
from dermlens import cli
from dermlens.errors import StorageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write(tmp_path_factory.mktemp("model") / "b"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for code in tiny.CODES:
        cv2.imwrite(str(folder / f"{code}.png"), tiny.colour(code)[:, :, ::-1])
    (folder / "bad.jpg").write_text("not an image")
    return folder


def call(*arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code or 0)


def test_it_says_what_it_did_and_how_to_read_it(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert call("batch", str(images), "--out", out, "--model", model, "--part-rows", "3", "--embedding") == 0
    said = capsys.readouterr().err
    assert "4 rows, 1 of them failed (see error_code) in 2 parts" in said and f"pandas.read_parquet({out!r})" in said
    assert list(pd.read_parquet(out).diagnosis_code.dropna()) == list(tiny.CODES)
    assert "embedding" in pd.read_parquet(out).columns
    again = ["batch", str(images), "--out", out, "--model", model, "--part-rows", "3", "--embedding", "--resume"]
    assert call(*again) == 0 and "Resuming after 4 rows" in capsys.readouterr().err


def test_a_batch_at_a_case_mix_is_not_continued_at_another(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["batch", str(images), "--out", str(tmp_path / "out"), "--model", model]
    assert call(*words, "--case-mix", "training") == 0
    rows = pd.read_parquet(tmp_path / "out")
    assert set(rows.case_mix) == {"training"} and json.loads(rows.case_mix_shares[0])["RED"] == 0.5
    capsys.readouterr()
    assert call(*words, "--resume", "--case-mix", "training") == 0
    assert call(*words, "--resume") == 2
    assert "case_mix" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{images}", "--shard", "0/3"], "--shard is '0/3'"),
        (["{images}", "--shard", "half"], "--shard is 'half'"),
        (["{images}", "--workers", "2"], "Add --engine ray"),
        (["{images}", "--out", "{images}/bad.jpg"], "bad.jpg"),
        (["{images}", "{images}s"], "No such file or folder"),
        (["{out}/nothing-*.png"], "nothing matches"),
        (["nonsense://x"], "not a protocol"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], words: str, model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"images": str(images), "out": str(tmp_path / "out")}
    given = [argument.format(**names) for argument in arguments]
    out = [] if "--out" in given else ["--out", names["out"]]
    assert call("batch", *given, *out, "--model", model) in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and words in errors[0]


def test_ctrl_c_keeps_the_rows_and_says_how_to_go_on(model: str, images: Path, tmp_path: Path) -> None:
    out, listing = tmp_path / "out", tmp_path / "list.txt"
    listing.write_text(f"{images}/RED.png\n" * 50_000)
    command = [sys.executable, "-m", "dermlens", "batch", str(listing), "--out", str(out), "--model", model]
    process = subprocess.Popen([*command, "--part-rows", "100"], stderr=subprocess.PIPE, text=True)
    waiting.until(lambda: bool(list(out.glob("part-*"))), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in said and "Traceback" not in said
    rows = len(pd.read_parquet(out))
    assert 100 <= rows < 50_000 and f"{rows:,} rows" in said


def test_the_rows_of_a_part_are_those_of_the_library() -> None:
    from dermlens.batch import job as library
    from dermlens.cli import batch as verb

    assert verb.DEFAULT_PART_ROWS == library.DEFAULT_PART_ROWS


def test_machines_are_told_in_json_and_metrics_and_no_image_is_named(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = tmp_path / "batch.prom"
    words = ["batch", str(images), "--out", str(tmp_path / "out"), "--model", model, "--log-json"]
    assert call(*words, "--metrics", str(metrics)) == 0
    said = capsys.readouterr().err
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["event"] for line in lines] == ["batch.started", "batch.finished"]
    assert lines[1] | {"rows": 4, "error_rows": 1, "done_ratio": 1.0, "model": "tiny"} == lines[1]
    text = metrics.read_text()
    assert 'state="finished"} 1' in text and 'dermlens_batch_error_rows{model="tiny"' in text
    assert "RED" not in said + text and "bad.jpg" not in said + text
    assert call(*words) == 2
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert line["event"] == "batch.error" and line["level"] == "error" and "--resume" in line["remedy"]
    assert call(*words, "--engine", "local", "--workers", "2") == 2
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert line["event"] == "batch.error" and "--engine ray" in line["remedy"]


def test_a_batch_that_breaks_off_says_failed(
    model: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise StorageError("The disk is full.", remedy="Free some space.")

    monkeypatch.setattr("dermlens.batch.job.run_local", broken)
    metrics = tmp_path / "batch.prom"
    words = ["batch", str(images), "--out", str(tmp_path / "out"), "--model", model]
    assert call(*words, "--log-json", "--metrics", str(metrics)) == 1
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["batch.started", "batch.failed", "batch.error"]
    assert 'state="failed"} 1' in metrics.read_text()
