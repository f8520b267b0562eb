"""How the embedded model is made: the repaired data, on the real folder."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dermlens.data.manifest import isic_ids_of_lesions
from dermlens.data.records import Record
from dermlens.diagnoses import ISIC2019
from dermlens.training.default_model import default_dataset, source_alone


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
