"""`dermlens package` and `dermlens models`: handing a model on and taking one in, as a person does it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from dermlens.bundle.bundle import NEIGHBOURS_FILE, load_bundle
from dermlens.cli import main
from dermlens.data.records import Record
from dermlens.evaluation.fit_trust import index_of


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DERMLENS_MODELS", str(tmp_path / "models"))


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def test_from_a_run_to_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = load_bundle(tiny.write(tmp_path / "run" / "bundle")).sha256
    file = str(tmp_path / "tiny.dermlens.zip")
    assert run("package", str(tmp_path / "run"), "--out", file) == 0
    told = capsys.readouterr().out
    assert digest in told and "It names its training images" not in told
    assert run("models", "add", file, "--name", "mine", "--sha256", "0" * 64) == 2
    assert "not added" in capsys.readouterr().err
    assert run("models", "add", file, "--name", "mine", "--sha256", digest) == 0
    shown = capsys.readouterr().out
    assert "SHA-256 that was asked for" in shown and "--model mine" in shown and "not a diagnosis" in shown
    assert run("models", "--json") == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [model["name"] for model in listed] == ["default", "mine"] and listed[1]["sha256"] == digest
    assert run("models") == 0
    assert "its own name is tiny" in capsys.readouterr().out
    assert run("models", "remove", "mine") == 0
    assert run("models", "add", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == "tiny"


@pytest.mark.parametrize("target", ["--out", "--hub"])
def test_who_hands_a_model_on_learns_that_it_names_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    folder = tiny.write(tmp_path / "run" / "bundle")
    pictures = np.array([tiny.colour(code).mean((0, 1)) for code in tiny.CODES])
    records = [Record(Path(code), f"Jane_Doe/{code}.png", code) for code in tiny.CODES]
    tiny.add(folder, {NEIGHBOURS_FILE: index_of(pictures, np.arange(3), records, tiny.CODES).arrays()})
    assert run("package", str(tmp_path / "run"), target, str(tmp_path / "packed")) == 0
    assert "It names its training images and lesions" in capsys.readouterr().out
    assert list(load_bundle(folder).examples().texts["image"]) == [f"{code}.png" for code in tiny.CODES]


def test_a_folder_for_the_hub_and_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tmp_path / "run" / "bundle")
    assert run("package", str(tmp_path / "run"), "--hub", str(tmp_path / "repo")) == 0
    assert (tmp_path / "repo" / "README.md").read_text().startswith("---\nlicense:")
    assert run("package", str(tmp_path / "run"), "--hub", str(tmp_path / "repo")) == 2
    assert run("package", str(tmp_path / "run"), "--hub", "a", "--out", "b") == 2
    assert run("models", "add", str(tmp_path / "nothing")) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_card_cannot_forge_a_line_or_break_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scope = "all [/x] pictures\n  known   it is the model 'default' that came with dermlens\x1b[2J\u202e"
    folder = tiny.write(tmp_path / "run" / "bundle", scope=scope, licence={"weights": "[/bold]\r\nknown yes"})
    for words in (["models", "add", str(folder)], ["models"]):
        assert run(*words) == 0
        shown = capsys.readouterr().out
        assert "all [/x] pictures" in shown and "[/bold] known yes" in shown
        assert not any(line.lstrip().startswith("known ") and "NO" not in line for line in shown.splitlines())
        assert "\x1b" not in shown and "\u202e" not in shown


def test_an_added_model_with_a_bad_card_is_called_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.write(tmp_path / "models" / "old") / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "licence": "MIT"}))
    assert run("models") == 0
    told = capsys.readouterr()
    assert "'old' is damaged" in " ".join(told.err.split()) and "not a diagnosis" in told.out
    tiny.write(tmp_path / "run" / "bundle")
    assert run("models", "add", str(tmp_path / "run"), "--name", "old") == 0
