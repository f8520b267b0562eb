"""Proven diagnoses beside the answers: found by name, told right or wrong, and clear words for a bad table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from dermlens import Predictor
from dermlens.errors import DataError, UsageError
from dermlens.inference.prediction import Prediction
from dermlens.reporting.proven import Verdict, read_proven


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Prediction:
    predictor = Predictor(tiny.write(tmp_path_factory.mktemp("m") / "b", **tiny.named("AK", "BKL", "SCC")))
    return predictor.predict(tiny.colour("GREEN"), name="/in/left/a.png")


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "proven.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["a.png", "a", "left/a.png", "left\\a.png", "/in/left/a.png"])
@pytest.mark.parametrize(
    ("diagnosis", "right"), [("BKL", True), ("seborrheic keratosis", True), ("melanoma", False), ("my rash", False)]
)
def test_a_diagnosis_is_found_by_the_name_of_the_image(
    answer: Prediction, tmp_path: Path, name: str, diagnosis: str, right: bool
) -> None:
    verdict = read_proven(table(tmp_path, f"image,proven\n{name},{diagnosis}\nb.png,MEL\n")).of(answer)
    assert verdict is not None and verdict.right is right


def test_the_nearest_name_counts_and_others_show_nothing(answer: Prediction, tmp_path: Path) -> None:
    proven = read_proven(table(tmp_path, "image;diagnosis\nright/a.png;MEL\nleft/a.png;BKL\nc.png;\n"))
    assert proven.of(answer) == Verdict("BKL", "benign keratosis", True)
    assert proven.of(replace(answer, image="c.png")) is None
    assert proven.of(replace(answer, error={"code": "x", "message": "", "remedy": ""})) is None
    assert "1 of 1 first diagnoses" in proven.summary([answer])
    assert proven.summary([replace(answer, image="b.png")]) == ""


def test_what_cannot_be_compared_is_neither_right_nor_wrong(answer: Prediction, tmp_path: Path) -> None:
    proven = read_proven(table(tmp_path, "image,diagnosis\na.png,AKIEC\n"))
    assert (found := proven.of(replace(answer, diagnosis_code="AK"))) and found.right is None
    assert (found := proven.of(answer)) and found.right is False
    assert (found := proven.of(replace(answer, status="rejected"))) and found.right is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("picture,diagnosis\na,MEL\n", "no column for the image: got picture, diagnosis"),
        ("image,what\na,MEL\n", "no column for the diagnosis: got image, what"),
        ("image,diagnosis\na.png,MEL\na.png,NV\n", "two diagnoses for a.png: MEL and NV"),
    ],
)
def test_a_bad_table_is_a_clear_error(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_proven(table(tmp_path, text))


def test_a_missing_file_and_no_table_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no file"):
        read_proven(tmp_path / "gone.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError):
        read_proven(tmp_path / "bytes.csv")
