"""The repair: each step in its order, and what must hold after it whatever the data set looked like."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermlens.audit.duplicates import NearPair
from dermlens.audit.findings import basic_findings
from dermlens.audit.labels import contradictions, truths
from dermlens.audit.repair import COLUMNS, Repair, plan_repair, write_repair
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Record, lesion_groups, members, picture_groups
from dermlens.data.tables import read_table


def record(name: str, diagnosis: str = "NV", **facts: str) -> Record:
    return Record(Path(name), name, diagnosis, **facts)  # type: ignore[arg-type]


def outcome(repair: Repair) -> dict[str, tuple[str, bool, str]]:
    return {r.record.image: (r.diagnosis, r.included, r.reason.partition(":")[0]) for r in repair.rows}


def test_the_reference_comes_first_and_then_one_copy_is_left() -> None:
    records = [record("ak", "AK"), record("nv", "NV"), record("sk", "SK"), record("nv2", "NV")]
    repair = plan_repair(records, ["1", "1", "2", "3"], truths=["AK", "AK", "BKL", "MEL"])
    assert outcome(repair) == {
        "ak": ("AK", True, ""),
        "nv": ("AK", False, "duplicate"),
        "sk": ("SK", True, ""),
        "nv2": ("NV", False, "reference"),
    }
    assert "no single class" in repair.rows[3].reason


def test_a_denied_label_takes_the_one_class_that_fits() -> None:
    records = [record("a", "NV"), record("b", "SK"), record("c", "PBK")]
    repair = plan_repair(records, ["1", "2", "3"], truths=["BKL", None, None])
    assert outcome(repair)["a"] == ("NV", False, "reference")  # SK or PBK: nobody knows
    repair = plan_repair(records[:2], ["1", "2"], truths=["BKL", None])
    assert outcome(repair)["a"] == ("SK", True, "reference")
    assert repair.counts()["relabelled_by_pair"] == {"NV->SK": 1}


def test_without_a_reference_all_copies_go() -> None:
    records = [record("a", "AK"), record("b", "NV"), record("c", "NV"), record("d", "NV", lesion_id="L")]
    records[2] = record("c", "NV", lesion_id="L")
    repair = plan_repair(records, ["1", "1", "1", "2"])
    assert [r.reason.partition(":")[0] for r in repair.rows] == ["contradictory"] * 4
    assert repair.rows[3].reason == "contradictory: its lesion is labelled AK, NV"
    assert repair.dropped.keys() == {"AK", "NV"} and "contradictory" in repair.dropped["AK"]


def test_the_largest_copy_is_kept_and_near_duplicates_are_copies() -> None:
    records = [record("small"), record("large"), record("near")]
    pairs = [NearPair(1, 2, 0, 3, 0.99)]
    repair = plan_repair(records, ["1", "1", "2"], pairs=pairs, areas_px=[10, 20, 15])
    assert outcome(repair) == {
        "small": ("NV", False, "duplicate"),
        "large": ("NV", True, ""),
        "near": ("NV", False, "near duplicate"),
    }


@pytest.mark.parametrize("keep_train", [False, True])
def test_of_a_lesion_on_both_sides_one_side_stays(keep_train: bool) -> None:
    records = [
        record("train", split="train", lesion_id="L"),
        record("copy-train", split="train"),
        record("copy-test", split="test"),
        record("test", split="test", lesion_id="L"),
        record("select", split="select", lesion_id="L"),
        record("free", split="train"),
    ]
    repair = plan_repair(records, ["1", "2", "2", "3", "4", "5"], keep_train=keep_train)
    used = {r.record.image for r in repair.rows if r.included}
    assert used == ({"train", "copy-train", "free"} if keep_train else {"copy-test", "test", "free"})
    left_out = [r for r in repair.rows if not r.included]
    assert all(r.reason.startswith("leak: ") for r in left_out)


def test_a_class_without_training_images_is_dropped_and_told() -> None:
    records = [
        record("a", "DF", split="train", lesion_id="L"),
        record("b", "DF", split="test", lesion_id="L"),
        record("c", split="train"),
    ]
    repair = plan_repair(records, ["1", "2", "3"])
    assert outcome(repair)["b"] == ("DF", False, "class dropped")
    assert repair.dropped == {"DF": "no training images are left; its 1 other images are left out too"}
    only_test = plan_repair([record("a", "DF", split="test")], ["1"])
    assert only_test.dropped == {} and only_test.rows[0].included


def test_unreadable_images_are_left_out() -> None:
    assert outcome(plan_repair([record("a"), record("b")], [None, "1"]))["a"] == ("NV", False, "unreadable")


RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["NV", "MEL", "SK", "PBK", "AKIEC"]),
        st.sampled_from([None, "L1", "L2", "L3"]),
        st.sampled_from([None, "P1", "P2"]),
        st.sampled_from([None, "train", "test", "select"]),
        st.sampled_from([None, "ISIC_0000001", "ISIC_0000002"]),
        st.sampled_from([None, "1", "2", "3", "4", "5", "6"]),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=300, deadline=None)
@given(
    RECORDS,
    st.dictionaries(st.sampled_from(["ISIC_0000001", "ISIC_0000002"]), st.sampled_from(["MEL", "BKL", "AK"])),
    st.lists(st.tuples(st.integers(0, 13), st.integers(0, 13)), max_size=3),
    st.booleans(),
)
def test_after_a_repair_nothing_contradicts_and_nothing_leaks(
    rows: list[tuple[str, str | None, str | None, str | None, str | None, str | None]],
    reference: dict[str, str],
    links: list[tuple[int, int]],
    keep_train: bool,
) -> None:
    records = [
        Record(Path(str(i)), str(i), code, lesion_id=lesion, patient_id=patient, split=split, isic_id=isic)
        for i, (code, lesion, patient, split, isic, _) in enumerate(rows)
    ]
    hashes = [row[5] for row in rows]
    pairs = [NearPair(min(p), max(p), 0, 1, 1.0) for p in links if p[0] != p[1] and max(p) < len(rows)]
    known = truths(records, picture_groups(records, hashes), reference)
    repair = plan_repair(records, hashes, truths=known, pairs=pairs, keep_train=keep_train)

    used = [i for i, row in enumerate(repair.rows) if row.included]
    kept = [
        Record(r.path, r.image, repair.rows[i].diagnosis, r.lesion_id, r.patient_id, r.split, isic_id=r.isic_id)
        for i in used
        for r in [records[i]]
    ]
    kept_hashes = [hashes[i] for i in used]
    pictures = picture_groups(kept, kept_hashes)
    assert None not in kept_hashes
    assert contradictions(kept, pictures) == []
    assert len(set(pictures)) == len(kept)  # one copy of every picture
    for group in members(lesion_groups(kept, kept_hashes)):
        assert len({kept[i].split for i in group} - {None}) <= 1
    by_lesion: dict[str, set[str]] = {}
    for one in kept:
        by_lesion.setdefault(one.lesion_id or one.image, set()).add(one.diagnosis)
    assert all(len(codes) == 1 for codes in by_lesion.values())
    position = {i: place for place, i in enumerate(used)}
    assert not any(p.first in position and p.second in position for p in pairs)
    bad = {"contradicting_labels", "same_image_across_split", "lesion_across_split", "patient_across_split"}
    assert not bad & {finding.kind for finding in basic_findings(kept, kept_hashes)}
    assert all(row.reason for row in repair.rows if not row.included)
    lost = {r.diagnosis for r in records} - {r.diagnosis for r in kept}
    assert lost <= repair.dropped.keys()


def test_the_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"x")
    records = [
        Record(tmp_path / "data/a.png", "a.png", "NV", "L", "P", "train", frame_aspect=1.333),
        Record(tmp_path / "data/b.png", "b.png", "MEL", split="test"),
    ]
    repair = plan_repair(records, ["1", None])
    write_repair(repair, tmp_path / "elsewhere" / "fixed.csv", tmp_path / "data")
    table = read_table(tmp_path / "elsewhere" / "fixed.csv")
    assert table.columns == (*COLUMNS, "patient_id", "frame_aspect")
    dataset = read_dataset(tmp_path / "elsewhere" / "fixed.csv", images=tmp_path / "data")
    (again,) = dataset.records
    assert (again.image, again.diagnosis, again.lesion_id, again.patient_id) == ("a.png", "NV", "L", "P")
    assert (again.split, again.frame_aspect) == ("train", 1.333)
    assert dataset.notes == ("1 images are marked as not included in fixed.csv (1 unreadable).",)
