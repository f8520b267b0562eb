"""ISIC-9 by itself: each test has its own images and labels, and the probe stands in its own row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy import isic9
from dermlens.data.records import Record

CODES = ("MEL", "NV")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """40 test images; the first ten carry a wrong label, the last ten are known from Train; `top` errs on every 4th."""
    plan, rows = [], []
    for i in range(40):
        true = CODES[i % 2]
        given = CODES[1 - i % 2] if i < 10 else true
        plan.append({"image": f"{i}.jpg", "given": given, "corrected": true, "lesion": i})
        plan[-1] |= {"as_it_stands": True, "repaired": True, "clean": 10 <= i < 30}
        told = CODES[1 - i % 2] if i % 4 == 0 else true
        shares = ["0.9" if code == told else "0.1" for code in CODES]
        rows.append([f"{i}.jpg", given, told, "NV", *shares, "0.4", "0.6"])
    folder = isic9.folder_of(tmp_path, "top", "repaired")
    folder.mkdir(parents=True)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with (folder / "test_predictions.csv").open("w", newline="") as file:
        head = ["image", "diagnosis", "decision", "probe_decision", "p_MEL", "p_NV", "q_MEL", "q_NV"]
        csv.writer(file).writerows([head, *rows])
    return tmp_path


def scored(out: Path) -> dict[str, Any]:
    plan = json.loads((out / "plan.json").read_text())
    return isic9.scores(isic9.folder_of(out, "top", "repaired"), "top", plan)


def test_three_tests_of_one_training(out: Path) -> None:
    found = scored(out)
    assert found["repaired"]["top"]["accuracy"]["value"] == pytest.approx(0.75)
    assert found["as_it_stands"]["top"]["accuracy"]["value"] == pytest.approx((30 - 7 + 3) / 40), "wrong labels"
    assert found["clean"]["linear probe"]["balanced_accuracy"]["value"] == pytest.approx(0.5)
    assert found["clean"]["minus_probe"]["value"] == pytest.approx(0.25)
    lines = isic9.table({"repaired": {"top": found}}).splitlines()
    assert "(a) as it stands, 40 images" in lines[0] and "(c) clean, 20 images" in lines[0]
    assert [line.split("|")[1:3] for line in lines[2:]] == [[" repaired ", " linear probe "], [" repaired ", " top "]]


def test_a_class_that_the_training_lacks_is_always_wrong(out: Path) -> None:
    plan = json.loads((out / "plan.json").read_text())
    plan[11] |= {"given": "SK", "clean": False}  # answered NV, which is right by the reference
    (out / "plan.json").write_text(json.dumps(plan))
    found = scored(out)
    assert found["repaired"]["top"]["accuracy"]["value"] == pytest.approx(0.75)
    before = (30 - 7 + 3) / 40
    assert found["as_it_stands"]["top"]["accuracy"]["value"] == pytest.approx(before - 1 / 40)


def test_a_test_image_of_a_class_without_training_images_stands_under_another() -> None:
    records = [
        Record(Path(name), name, "SK", split=split) for name, split in (("a", "test"), ("b", "test"), ("c", "train"))
    ]
    plan = [{"given": "SK", "corrected": corrected} for corrected in ("MEL", "SK", "SK")]
    tested = isic9.tested_under(records, plan, {"NV", "MEL"})
    assert [(r.image, r.diagnosis) for r in tested] == [("a", "MEL"), ("b", "MEL")]
