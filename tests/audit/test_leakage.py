"""What training knows of the test, counted image by image; what two data sets share."""

from __future__ import annotations

from pathlib import Path

from dermlens.audit.duplicates import NearPair, near_groups
from dermlens.audit.leakage import inferred_leaks, leak_counts, shared_with
from dermlens.data.records import Record


def record(name: str, diagnosis: str = "NV", **facts: str) -> Record:
    return Record(Path(name), name, diagnosis, **facts)  # type: ignore[arg-type]


def test_every_way_of_leaking_has_its_count() -> None:
    records = [
        record("same-train", "NV", split="train"),
        record("same-test", "NV", split="test"),
        record("other-label-train", "AK", split="train"),
        record("other-label-test", "NV", split="test"),
        record("lesion-train", split="train", lesion_id="L"),
        record("lesion-test", split="test", lesion_id="L"),
        record("lesion-and-picture-train", split="train", lesion_id="M"),
        record("lesion-and-picture-test", split="test", lesion_id="M"),
        record("patient-train", split="train", patient_id="P"),
        record("patient-test", split="test", patient_id="P"),
        record("near-train", split="train"),
        record("near-test", split="test"),
        record("alone-test", split="test"),
    ]
    hashes = ["1", "1", "2", "2", "3", "4", "5", "5", "6", "7", "8", "9", "10"]
    counts = leak_counts(records, hashes, [NearPair(10, 11, 0, 3, 0.99)])
    assert counts == {
        "test_images": 7,
        "test_images_same_picture_in_train": 3,
        "test_images_under_another_label_in_train": 1,
        "test_images_only_under_another_label_in_train": 1,
        "test_images_only_under_another_label_with_near_copies": 1,
        "test_images_with_lesion_in_train_other_image": 1,
        "test_images_with_lesion_in_train_any_image": 2,
        "test_images_with_patient_in_train": 1,
        "test_images_near_duplicate_in_train": 1,
        "test_images_leaked_only_by_near_duplicate": 1,
        "test_images_leaked_any": 5,
    }


def test_near_copies_are_counted_through_identical_files_and_other_copies() -> None:
    records = [record("train", "MEL", split="train")] + [record(f"{i}", "NV", split="test") for i in range(4)]
    hashes = ["1", "2", "2", "3", "4"]  # two identical test files near the training file, one near those, one alone
    pairs = [NearPair(0, 1, 0, 3, 0.99)]
    counts = leak_counts(records, hashes, pairs)
    assert counts["test_images_near_duplicate_in_train"] == 2
    assert counts["test_images_leaked_only_by_near_duplicate"] == 2 and counts["test_images_leaked_any"] == 0
    assert counts["test_images_only_under_another_label_with_near_copies"] == 2
    assert counts["test_images_only_under_another_label_in_train"] == 0
    chained = leak_counts(records, hashes, [*pairs, NearPair(1, 3, 0, 3, 0.99)])
    assert chained["test_images_near_duplicate_in_train"] == 3


def test_the_picture_itself_outweighs_its_near_copies() -> None:
    records = [record("a", "MEL", split="train"), record("b", "NV", split="train"), record("c", "NV", split="test")]
    counts = leak_counts(records, ["1", "2", "1"], [NearPair(0, 1, 0, 3, 0.99)])
    assert counts["test_images_only_under_another_label_with_near_copies"] == 1
    assert counts["test_images_near_duplicate_in_train"] == 1 == counts["test_images_leaked_any"]
    assert counts["test_images_leaked_only_by_near_duplicate"] == 0


def test_near_duplicates_across_the_split_are_inferred_leaks_unless_known() -> None:
    known = [record("a", split="train", lesion_id="L"), record("b", split="test", lesion_id="L")]
    unknown = [record("a", split="train"), record("b", split="test")]
    hashes = ["1", "2"]
    groups = near_groups([NearPair(0, 1, 0, 3, 0.99)], hashes)
    assert inferred_leaks(known, groups, hashes) == []
    (finding,) = inferred_leaks(unknown, groups, hashes)
    assert finding.roles == ("train", "test") and "nferred" in finding.evidence


def test_two_data_sets_share_pictures_near_duplicates_and_lesions() -> None:
    own = [record("a"), record("b"), record("c", "SK", lesion_id="L"), record("d")]
    other = [record("o/a"), record("o/b", "MEL"), record("o/c", "BKL", lesion_id="L"), record("o/e")]
    hashes = ["1", "2", "3", "4", "1", "5", "6", "7"]
    counts, findings = shared_with(own, other, hashes, [NearPair(1, 5, 0, 2, 0.99)])
    assert counts == {"images": 4, "same_picture": 1, "near_duplicate": 1, "any": 3, "under_another_label": 1}
    assert [f.images for f in findings] == [("a", "o/a"), ("b", "o/b"), ("c", "o/c")]
