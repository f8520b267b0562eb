"""Joining data sets, and one copy of every picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from dermlens.data.combine import combine, drop_contradictions_and_duplicates, kept_copies
from dermlens.data.records import Dataset, Record
from dermlens.errors import UsageError


def record(name: str, diagnosis: str, source: str | None = None, isic_id: str | None = None) -> Record:
    return Record(Path(name), name, diagnosis, source=source, isic_id=isic_id)


def test_combined_names_are_unique_and_sources_filled_in() -> None:
    one = Dataset(Path("/data/isic9"), "class folders", (record("a.jpg", "NV"),), ("a note.",))
    two = Dataset(Path("/other/isic9"), "HAM10000", (record("a.jpg", "MEL", source="part_1"),))
    joined = combine(one, two)
    assert [(r.image, r.source) for r in joined.records] == [
        ("isic9/a.jpg", "isic9"),
        ("isic9-2/a.jpg", "part_1"),
    ]
    assert joined.notes == ("isic9: a note.",)
    assert joined.layout == "class folders + HAM10000"
    assert [r.image for r in combine(one, two, names=["x", "y"]).records] == ["x/a.jpg", "y/a.jpg"]


def test_combine_needs_a_name_for_each() -> None:
    one = Dataset(Path("/data/a"), "class folders", ())
    with pytest.raises(UsageError):
        combine()
    with pytest.raises(UsageError):
        combine(one, one, names=["x", "x"])


def test_best_copy_is_kept_and_contradictions_go() -> None:
    records = [
        record("small", "NV", "images_200x150", "ISIC_0000001"),
        record("square", "NV", "isic9", "ISIC_0000001"),
        record("good", "NV", "images_224", "ISIC_0000001"),
        record("sk", "BKL", "isic9", "ISIC_0000002"),
        record("mel", "MEL", "isic9", "ISIC_0000003"),
        record("broken", "DF", "isic9"),
        record("alone", "DF"),
        record("ak", "AK", "isic9", "ISIC_0000004"),
        record("nv", "NV", "images_224", "ISIC_0000004"),
    ]
    hashes = ["1", "2", "3", "same", "same", None, "6", "7", "8"]
    kept, notes = drop_contradictions_and_duplicates(records, hashes, prefer=("images_224", "isic9", "images_200x150"))
    assert [r.image for r in kept] == ["good", "alone"]
    assert notes == [
        "2 pictures (4 files) stand under more than one diagnosis and are left out: 1 AK/NV, 1 BKL/MEL.",
        "2 further copies of kept pictures are left out.",
        "1 unreadable files are left out.",
    ]
    assert kept_copies(records, hashes)[0] == [0, 6]


def test_unreadable_copy_is_never_the_one_that_is_kept() -> None:
    records = [record("a", "NV", "best", "ISIC_0000001"), record("b", "NV", "other", "ISIC_0000001")]
    assert kept_copies(records, [None, "2"], prefer=("best",))[0] == [1]
