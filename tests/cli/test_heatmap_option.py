"""`predict --heatmap DIR`: one picture for each answer, named in the JSON; a bad image has none."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny
from dermlens import cli


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code or 0)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny.write(tmp_path / "b"))


def test_each_answer_gets_its_heat_map(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "in"
    images.mkdir()
    for code in tiny.CODES:
        cv2.imwrite(str(images / f"{code}.png"), tiny.colour(code)[:, :, ::-1])
    (images / "broken.png").write_text("not an image")
    maps = tmp_path / "maps"
    page = tmp_path / "page.html"
    assert call("predict", str(images), "--model", model, "--json", "--heatmap", str(maps), "--html", str(page)) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["status"] for row in rows].count("error") == 1
    for row in rows:
        assert ("heatmap" in row) == (row["status"] == "ok")
        if row["status"] == "ok":
            assert Path(row["heatmap"]).name == f"{row['diagnosis']['code']}_{row['diagnosis']['code']}.png"
            assert np.asarray(cv2.imread(row["heatmap"])).shape == (tiny.SIZE_PX, tiny.SIZE_PX, 3)
    assert len(list(maps.iterdir())) == 3 and page.read_text().count("evidence for") == 3


def test_without_it_nothing_is_written(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), tiny.colour("RED"))
    assert call("predict", str(tmp_path / "a.png"), "--model", model, "--json") == 0
    assert "heatmap" not in json.loads(capsys.readouterr().out)


def test_a_place_that_cannot_be_written_is_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), tiny.colour("RED"))
    (tmp_path / "file").write_text("")
    assert call("predict", str(tmp_path / "a.png"), "--model", model, "--heatmap", str(tmp_path / "file")) == 1
    assert "Heat maps could not be written" in capsys.readouterr().err
