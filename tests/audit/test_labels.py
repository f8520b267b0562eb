"""Labels against each other, a reference and a classifier: contradictions, small classes, suspects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dermlens.audit.labels import (
    agrees,
    compatible,
    contradictions,
    label_suspects,
    lesion_findings,
    out_of_fold,
    pairs_of,
    reference_counts,
    reference_findings,
    support,
    support_findings,
    suspect_findings,
    suspects_by_pair,
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


CLASSES = ("BCC", "MEL", "NV")


def a_set(n: int = 240, wrong: int = 12) -> tuple[list[Record], np.ndarray, list[str], set[int]]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, n)
    vectors = (np.eye(3)[truth] @ rng.normal(0, 1, (3, 20)) * 2 + rng.normal(0, 0.6, (n, 20))).astype(np.float16)
    flipped = set(rng.choice(n, wrong, replace=False).tolist())
    labels = [(t + 1) % 3 if i in flipped else t for i, t in enumerate(truth)]
    records = [Record(Path(f"{i}.jpg"), f"{i}.jpg", CLASSES[label]) for i, label in enumerate(labels)]
    return records, vectors, [str(i) for i in range(n)], flipped


def test_wrong_labels_come_first() -> None:
    records, vectors, keys, flipped = a_set()
    found = label_suspects(records, vectors, keys, range(len(records)))
    assert len({s.image for s in found[:12]} & flipped) >= 8  # chance is one in twenty
    assert [s.score for s in found] == sorted(s.score for s in found)
    assert all(s.suggested != records[s.image].diagnosis for s in found)
    first = suspect_findings(records, found)[0]
    record = records[found[0].image]
    assert first.images == (record.image,) and first.labels == (record.diagnosis,)
    assert first.suggested == (found[0].suggested,) and found[0].suggested in first.evidence
    assert sum(suspects_by_pair(records, found).values()) == len(found)


def test_images_without_an_embedding_and_tiny_classes_are_passed_over() -> None:
    records, vectors, keys, flipped = a_set()
    gone = min(flipped)
    keys[gone] = ""
    records.append(Record(Path("x"), "x", "VASC"))
    more = np.vstack([vectors, vectors[:1]])
    found = label_suspects(records, more, [*keys, "x"], range(len(records)))
    assert not {gone, len(records) - 1} & {s.image for s in found}
    assert "VASC" not in {s.suggested for s in found}


def test_one_class_or_no_image_has_no_suspects() -> None:
    records, vectors, keys, _ = a_set()
    same = [Record(r.path, r.image, "NV") for r in records]
    assert label_suspects(same, vectors, keys, range(len(same))) == []
    assert label_suspects([], vectors[:0], [], []) == []


def test_a_group_is_never_in_fit_and_fold() -> None:
    """What only its own group could tell stays unknown: noise vectors, each group of four with a label of its own."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 4)
    labels = np.repeat(rng.integers(0, 2, 60), 4)
    vectors = np.repeat(rng.normal(0, 1, (60, 400)), 4, axis=0).astype(np.float16)
    told = out_of_fold(vectors, labels, groups, 2).argmax(axis=1)
    assert (told == labels).mean() < 0.7
    leaky = out_of_fold(vectors, labels, np.arange(240), 2).argmax(axis=1)
    assert (leaky == labels).mean() > 0.8
