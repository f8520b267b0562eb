"""Files and folders on the command line -> images in a fixed order."""

from __future__ import annotations

from pathlib import Path

import pytest

from dermlens.errors import UsageError
from dermlens.inference.inputs import expand


def _touch(base: Path, *names: str) -> None:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"x")


def test_folders_are_walked_in_sorted_order_and_named_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(
        tmp_path,
        "in/b.JPG",
        "in/a.png",
        "in/sub/c.webp",
        "in/notes.txt",
        "in/phone.HEIC",
        "in/.hidden.png",
        "in/__MACOSX/d.png",
    )
    monkeypatch.chdir(tmp_path)
    inputs = expand(["in", "other.jpg"])
    assert inputs.paths == ("in/a.png", "in/b.JPG", "in/phone.HEIC", "in/sub/c.webp", "other.jpg")
    assert len(inputs.notes) == 1 and "1 other file skipped" in inputs.notes[0]


def test_a_named_file_counts_whatever_its_name(tmp_path: Path) -> None:
    assert expand([str(tmp_path / "missing.dat")]).paths == (str(tmp_path / "missing.dat"),)


def test_no_image_at_all_is_wrong_use(tmp_path: Path) -> None:
    _touch(tmp_path, "readme.txt")
    with pytest.raises(UsageError, match="No images found"):
        expand([str(tmp_path)])
