"""The data of the embedded model: joined, repaired, one copy of each picture; at the end on the real folder."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dermlens.data.manifest import isic_ids_of_lesions
from dermlens.data.records import Dataset, Record
from dermlens.diagnoses import ISIC2019
from scripts.default_model.dataset import combine, default_dataset, drop_contradictions_and_duplicates, source_alone


def record(name: str, diagnosis: str, source: str | None = None, isic_id: str | None = None) -> Record:
    return Record(Path(name), name, diagnosis, source=source, isic_id=isic_id)


def test_combined_names_are_unique_and_sources_filled_in() -> None:
    one = Dataset(Path("/data/isic9"), "class folders", (record("a.jpg", "NV"),), ("a note.",))
    two = Dataset(Path("/data/ham10000"), "HAM10000", (record("a.jpg", "MEL", source="part_1"),))
    joined = combine(one, two)
    assert [(r.image, r.source) for r in joined.records] == [
        ("isic9/a.jpg", "isic9"),
        ("ham10000/a.jpg", "part_1"),
    ]
    assert joined.notes == ("isic9: a note.",)
    assert joined.layout == "class folders + HAM10000"


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
        "2 pictures (4 files) have more than one diagnosis and are left out: 1 AK/NV, 1 BKL/MEL.",
        "2 more copies of the same pictures are left out.",
        "1 unreadable files are left out.",
    ]
    kept, _ = drop_contradictions_and_duplicates(records, hashes)
    assert [r.image for r in kept] == ["small", "alone"], "without a preference the first copy"


def test_unreadable_copy_is_never_the_one_that_is_kept() -> None:
    records = [record("a", "NV", "best", "ISIC_0000001"), record("b", "NV", "other", "ISIC_0000001")]
    assert drop_contradictions_and_duplicates(records, [None, "2"], prefer=("best",))[0] == [records[1]]


def test_source_alone_is_chance_without_a_bias_and_more_with_one() -> None:
    even = [Record(Path("x"), "x", code, source=source) for code in ISIC2019 for source in ("a", "b")]
    assert source_alone(even)["balanced_accuracy"] == pytest.approx(1 / 8)
    biased = [replace(r, source="c") if r.diagnosis == "MEL" else r for r in even]
    assert source_alone(biased)["balanced_accuracy"] == pytest.approx(2 / 8)


@pytest.mark.data
def test_the_repaired_data_has_eight_classes_no_contradiction_and_keeps_the_examples_out(data_dir: Path) -> None:
    dataset = default_dataset(data_dir, Console(file=io.StringIO()))
    counts = Counter(r.diagnosis for r in dataset.records)
    assert tuple(sorted(counts)) == ISIC2019
    assert counts == {
        "AK": 130,
        "BCC": 514,
        "BKL": 1099,
        "DF": 122,
        "MEL": 1514,
        "NV": 6999,
        "SCC": 202,
        "VASC": 142,
    }
    ids = [r.isic_id for r in dataset.records]
    assert len(set(ids)) == len(ids), "one copy of each picture"
    of_lesion: dict[str, set[str]] = {}
    for record in dataset.records:
        if record.lesion_id:
            of_lesion.setdefault(record.lesion_id, set()).add(record.diagnosis)
    assert all(len(labels) == 1 for labels in of_lesion.values())
    held = [r for r in dataset.records if r.split == "test"]
    assert len(held) >= 10
    assert any("SK to MEL" in note for note in dataset.notes)
    assert any("more than one diagnosis" in note for note in dataset.notes)


@pytest.mark.data
def test_every_isic_id_of_a_lesion_counts_as_seen(data_dir: Path) -> None:
    ids = isic_ids_of_lesions(data_dir / "isic_reference.csv")
    assert set(ids["HAM_0000118"]) >= {"ISIC_0027419", "ISIC_0025030"}
