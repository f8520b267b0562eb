"""Answers on terminals of any width."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import tiny
from dermlens import Predictor
from dermlens.reporting.terminal import common_folder, show


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (["a/b/x.png", "a/b/y.png"], "a/b/"),
        (["a/x.png", "b/y.png"], ""),
        (["a/x.png"], "a/"),
        (["/a/b/x.png", "/a/c/d/y.png", "/a/z.png"], "/a/"),
        (["/a/x.png", "/b/y.png"], ""),
        (["ab/x.png", "ac/y.png"], ""),
        (["x.png", "y.png"], ""),
    ],
)
def test_a_folder_that_all_share_is_said_once(names: list[str], folder: str) -> None:
    assert common_folder(names) == folder


@pytest.mark.parametrize("width", [80, 140])
def test_names_stand_on_one_line_whatever_the_width(width: int, tmp_path: Path) -> None:
    predictor = Predictor(tiny.write(tmp_path / "b"))
    answers = list(
        predictor.predict_many([tiny.colour("RED")] * 2, names=["some/long/folder/one.png", "some/long/folder/two.png"])
    )
    told = io.StringIO()
    show(answers, predictor.bundle, top=3, console=Console(file=told, width=width))
    lines = told.getvalue().splitlines()
    assert lines[0] == "in some/long/folder/"
    assert lines[2].startswith("one.png") and lines[3].startswith("two.png")
    assert ("█" in lines[2]) == (width == 140)
