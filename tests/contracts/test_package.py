"""What is shipped: the wheel holds the data files, and no example image may be learned from."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

pytestmark = pytest.mark.check

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "images"


def test_wheel_holds_every_source_and_data_file(tmp_path: Path) -> None:
    if not (ROOT / "README.md").is_file():
        pytest.fail("README.md is missing, and pyproject.toml names it.")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "dermlens").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    assert any(name.startswith("dermlens/templates/") for name in names)


def test_every_example_image_has_its_licence_and_is_kept_from_training() -> None:
    with (EXAMPLES / "LICENCES.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    reserved = json.loads((ROOT / "scripts/default_model/reserved.json").read_text())
    assert sorted(row["image"] for row in rows) == sorted(path.name for path in EXAMPLES.glob("*.jpg"))
    assert {row["isic_id"] for row in rows} <= set(reserved["isic_ids"])
    assert {row["licence"] for row in rows} <= {"CC0-1.0", "CC-BY-NC-4.0"}
    assert all(row["attribution"] for row in rows)
