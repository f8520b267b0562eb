"""`dermlens backbones`, and what `dermlens train` refuses about the network before TensorFlow starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dermlens import cli
from dermlens.networks.family import BACKBONES


def call(*arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code or 0)


def test_the_table_has_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("backbones") == 0
    out = capsys.readouterr().out
    first = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert [word for word in first if word in BACKBONES] == list(BACKBONES)
    assert "37.74 G" in out and "75.1%" in out and "--backbone NAME" in out


def test_json_gives_the_facts_of_the_rows_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("backbones", "--json", "--only", "EfficientNetB7", "--only", "lite3") == 0
    large, bare = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (large["name"], large["input_size_px"], large["weights"]) == ("b7", 600, "imagenet")
    assert (bare["name"], bare["weights"], bare["licence"]) == ("lite3", None, None)
    assert "latency_ms" not in large


@pytest.mark.long
def test_latency_is_measured_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("backbones", "--json", "--only", "lite0", "--latency") == 0
    captured = capsys.readouterr()
    assert 0 < json.loads(captured.out)["latency_ms"] < 10_000
    assert "Latency: 1 of 1" in captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--backbone", "b9"], "Did you mean b"),
        (["--backbone", "b1", "--weights", "lite"], "Use 'imagenet'"),
        (["--backbone", "lite4"], "say 'none'"),
        (["--weights", "absent.keras"], "no such file"),
        (["--set", "size_px=20"], "32 to 1024"),
    ],
)
def test_what_cannot_be_had_is_told_before_tensorflow_starts(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", str(tmp_path), "--out", str(tmp_path / "out"), *arguments) == 2
    err = capsys.readouterr().err
    assert says in err and "Starting TensorFlow" not in err
    assert not (tmp_path / "out").exists()


def test_weights_in_the_run_folder_to_be_written_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.keras").write_bytes(b"x")
    assert call("train", str(tmp_path), "--out", str(tmp_path), "--weights", str(tmp_path)) == 2
    assert "another --out" in capsys.readouterr().err


def test_the_verb_starts_without_tensorflow() -> None:
    program = (
        "import sys\nfrom dermlens.cli import main\ntry:\n    main(['backbones'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(bool({'tensorflow', 'keras', 'h5py', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False, capture_output=True).returncode == 0
