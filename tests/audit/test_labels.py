"""Labels against each other, against a reference, and against what their number allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from dermlens.audit.labels import (
    agrees,
    compatible,
    contradictions,
    lesion_findings,
    pairs_of,
    reference_counts,
    reference_findings,
    support,
    support_findings,
    truths,
    wilson_width,
)
from dermlens.data.records import Record, picture_groups


def record(name: str, diagnosis: str = "NV", **facts: str) -> Record:
    return Record(Path(name), name, diagnosis, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("label", "truth", "expected"),
    [("NV", "NV", True), ("SK", "BKL", True), ("AKIEC", "SCC", True), ("NV", "AK", False), ("SK", "MEL", False)],
)
def test_finer_and_coarser_names_agree(label: str, truth: str, expected: bool) -> None:
    assert agrees(label, truth) is expected
    assert compatible(truth, label) is expected


def test_contradictions_are_counted_by_picture_not_by_file() -> None:
    records = [record("a", "AK"), record("b", "NV"), record("c", "NV"), record("d", "MEL"), record("e", "SK")]
    groups = contradictions(records, picture_groups(records, ["1", "1", "1", "2", "2"]))
    assert groups == [[0, 1, 2], [3, 4]]
    assert pairs_of(records, groups) == {"AK/NV": 1, "MEL/SK": 1}


def test_the_reference_speaks_for_all_copies_of_a_picture() -> None:
    records = [record("a", "NV", isic_id="ISIC_0000001"), record("b", "AK"), record("c", "SK", isic_id="ISIC_0000002")]
    known = truths(records, picture_groups(records, ["1", "1", "2"]), {"ISIC_0000001": "AK", "ISIC_0000002": "BKL"})
    assert known == ["AK", "AK", "BKL"]
    counts = reference_counts(records, known)
    assert (counts["known"], counts["agree"], counts["disagree"]) == (3, 2, 1)
    assert counts["by_pair"] == {"NV->AK": 1} and counts["by_class"]["NV"] == {"known": 1, "disagree": 1}
    (finding,) = reference_findings(records, known)
    assert finding.images == ("a",) and "the reference says AK" in finding.evidence


def test_a_reference_that_says_two_things_says_nothing() -> None:
    records = [record("a", "NV", isic_id="ISIC_0000001"), record("b", "NV", isic_id="ISIC_0000002")]
    assert truths(records, picture_groups(records, ["1", "1"]), {"ISIC_0000001": "AK", "ISIC_0000002": "NV"}) == [
        None,
        None,
    ]


def test_a_lesion_under_two_diagnoses_needs_two_pictures() -> None:
    same = [record("a", "AK", lesion_id="L"), record("b", "NV", lesion_id="L")]
    assert lesion_findings(same, picture_groups(same, ["1", "1"])) == []
    (finding,) = lesion_findings(same, picture_groups(same, ["1", "2"]))
    assert finding.images == ("a", "b") and "AK, NV" in finding.evidence


def test_support_tells_what_a_test_can_show() -> None:
    records = [record(f"t{i}", "DF", split="test") for i in range(3)]
    records += [record(f"n{i}", "NV", split="test") for i in range(100)]
    records += [record("again", "NV", split="train")]
    classes = support(records)
    assert classes["DF"]["scored_lesions"] == 3 and classes["NV"]["by_split"] == {"test": 100, "train": 1}
    kinds = [finding.kind for finding in support_findings(records, classes)]
    assert kinds == ["class_hard_to_score", "class_imbalance"]
    assert wilson_width(0.8, 0) == 1 and 0.15 < wilson_width(0.8, 100) < 0.16
