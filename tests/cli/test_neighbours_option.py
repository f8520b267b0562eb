"""`predict --neighbours K`: names of training lesions in terminal, JSON and page; a clear word from a model without."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny
from dermlens import cli
from dermlens.bundle.bundle import NEIGHBOURS_FILE
from dermlens.data.records import Record
from dermlens.evaluation.fit_trust import index_of


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code or 0)


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tiny.write(tmp_path / "b")
    pictures = np.array([tiny.colour(code).mean((0, 1)) for code in tiny.CODES])
    records = [Record(Path(code), f"<{code}>.png", code) for code in tiny.CODES]
    tiny.add(folder, {NEIGHBOURS_FILE: index_of(pictures, np.arange(3), records, tiny.CODES).arrays()})
    return str(folder)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    cv2.imwrite(str(tmp_path / "a.png"), tiny.colour("RED")[:, :, ::-1])
    return str(tmp_path / "a.png")


def test_json_terminal_and_page_name_them(
    model: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    maps = ("--heatmap", str(tmp_path / "maps"))
    assert call("predict", picture, "--model", model, "--neighbours", "2", "--html", str(page), *maps) == 0
    told = capsys.readouterr().out
    assert "nearest to a.png: <RED>.png RED 1.00, " in told and "prove nothing" in told
    assert "Nearest in training: &lt;RED&gt;.png RED 1.00" in page.read_text()
    assert call("predict", picture, "--model", model, "--json", "--neighbours", "2") == 0
    assert json.loads(capsys.readouterr().out)["neighbours"][0]["diagnosis"] == "RED"
    assert call("predict", picture, "--model", model, "--json") == 0
    assert "neighbours" not in json.loads(capsys.readouterr().out)


def test_a_model_without_them_ends_with_the_remedy(
    tmp_path: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", picture, "--model", str(tiny.write(tmp_path / "old")), "--neighbours", "3") == 2
    captured = capsys.readouterr()
    words = captured.err.replace("\n", " ")
    assert "neighbours.npz" in words and "Train the model again" in words and not captured.out
