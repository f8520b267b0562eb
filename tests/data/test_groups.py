"""Records that share a picture, lesion or patient end up in one group, also through a third record."""

from __future__ import annotations

from pathlib import Path

from dermlens.data.records import Record, lesion_groups, members, picture_groups


def record(name: str, **facts: str) -> Record:
    return Record(Path(name), name, "NV", **facts)  # type: ignore[arg-type]


def test_groups_are_connected_components() -> None:
    records = [
        record("0", lesion_id="L1"),
        record("1", patient_id="P1"),
        record("2", isic_id="ISIC_0000001"),
        record("3", lesion_id="L1", patient_id="P1"),
        record("4"),
        record("5", isic_id="ISIC_0000001"),
        record("6"),
        record("7"),
    ]
    hashes = ["a", "b", "c", "d", "e", "f", "e", None]
    assert lesion_groups(records, hashes) == [0, 0, 1, 0, 2, 1, 2, 3]
    assert picture_groups(records, hashes) == [0, 1, 2, 3, 4, 2, 4, 5]
    assert members(lesion_groups(records, hashes)) == [[0, 1, 3], [2, 5], [4, 6], [7]]


def test_equal_text_in_different_columns_is_no_tie() -> None:
    records = [record("0", lesion_id="7"), record("1", patient_id="7")]
    assert lesion_groups(records, ["7", None]) == [0, 1]
    assert lesion_groups([], []) == []
