"""The index of training lesions: one image a lesion, rare classes whole, unreadable images left out."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

import tiny
from dermlens.bundle.bundle import Bundle, load_bundle
from dermlens.data.records import Record
from dermlens.evaluation import fit_trust
from dermlens.evaluation.fit_trust import Labelled, first_of_lesion, fit_examples, most_per_class
from dermlens.inference.runtime import Runtime

QUIET = Console(file=io.StringIO())


def test_the_first_image_of_each_lesion_is_taken() -> None:
    assert first_of_lesion(np.array([7, 7, 2, 9, 2, 7])).tolist() == [0, 2, 3]


def test_common_classes_are_thinned_out_and_rare_ones_kept_whole() -> None:
    y = np.repeat([0, 1, 2], [1000, 300, 10])
    most = most_per_class(y, 500)
    assert most == 245 and sum(min(int(n), most) for n in np.bincount(y)) == 500
    assert most_per_class(y, 5000) >= 1000


def model(folder: Path) -> tuple[Bundle, Runtime]:
    bundle = load_bundle(tiny.write(folder / "b"))
    return bundle, Runtime(bundle.graph_path)


def painted(folder: Path, n: int) -> Labelled:
    """Two views of each of n lesions, colour by colour; the first file of lesion 1 cannot be read."""
    folder.mkdir(parents=True)
    records = []
    for row in range(2 * n):
        code = tiny.CODES[row // 2 % 3]
        path = folder / f"{row}.png"
        cv2.imwrite(str(path), tiny.colour(code)[:, :, ::-1])
        records.append(Record(path=path, image=f"{code}/Jane_Doe/{path.name}", diagnosis=code))
    (folder / "2.png").write_text("no image")
    return Labelled(records, np.arange(2 * n) // 2 % 3, np.arange(2 * n) // 2)


def test_the_index_names_what_could_be_read_without_its_folder(tmp_path: Path) -> None:
    index = fit_examples(*model(tmp_path), painted(tmp_path / "in", 6), seed=0, console=QUIET)
    assert index is not None
    assert list(index.texts["image"]) == [f"{row}.png" for row in (0, 4, 6, 8, 10)]
    assert index.diagnosis.tolist() == [0, 2, 0, 1, 2]


def test_too_many_lesions_are_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_trust, "MOST", 3)
    index = fit_examples(*model(tmp_path), painted(tmp_path / "in", 9), seed=1, console=QUIET)
    assert index is not None and 2 <= len(index.places) <= 3
    assert len(set(index.diagnosis.tolist())) == len(index.diagnosis)


def test_without_a_readable_image_there_is_none(tmp_path: Path) -> None:
    gone = Labelled([Record(tmp_path / "x.png", "x.png", "RED")], np.array([2]), np.array([0]))
    assert fit_examples(*model(tmp_path), gone, seed=0, console=QUIET) is None
