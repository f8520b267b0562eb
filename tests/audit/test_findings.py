"""The first audit: unreadable files, contradicting labels, leaks, small classes; each told once and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermlens.audit.findings import Finding, basic_findings, hash_records, summary
from dermlens.data.images import content_hash
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Record
from dermlens.errors import DataError

LEAKS = ("same_image_across_split", "lesion_across_split", "patient_across_split")


def record(name: str, diagnosis: str = "NV", split: str | None = None, **facts: str) -> Record:
    return Record(Path(name), name, diagnosis, split=split, **facts)  # type: ignore[arg-type]


def make_image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def of_kind(findings: list[Finding], kind: str) -> list[Finding]:
    return [finding for finding in findings if finding.kind == kind]


def leaks(records: list[Record], hashes: list[str | None] | None = None) -> dict[str, list[tuple[str, ...]]]:
    findings = basic_findings(records, hashes or [f"hash-{r.image}" for r in records])
    return {kind: [f.images for f in of_kind(findings, kind)] for kind in LEAKS}


def test_hashes_are_of_the_files_and_unreadable_ones_are_none(tmp_path: Path) -> None:
    good = make_image(tmp_path / "NV/good.jpg", 1)
    (tmp_path / "NV/truncated.jpg").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "NV/empty.png").write_bytes(b"")
    (tmp_path / "NV/text.jpg").write_text("this is no image")
    steps: list[int] = []
    records = read_dataset(tmp_path).records
    hashes = hash_records(records, progress=steps.append)
    assert dict(zip([r.image for r in records], hashes, strict=True)) == {
        "NV/empty.png": None,
        "NV/good.jpg": content_hash(good.read_bytes()),
        "NV/text.jpg": None,
        "NV/truncated.jpg": None,
    }
    assert sum(steps) == 4
    findings = of_kind(basic_findings(records, hashes), "unreadable")
    assert [f.images for f in findings] == [("NV/empty.png",), ("NV/text.jpg",), ("NV/truncated.jpg",)]
    assert all(f.severity == "error" for f in findings)
    assert "is empty" in findings[0].evidence
    assert summary(findings) == ["3 images that cannot be read (first NV/empty.png)"]


def test_a_file_that_vanished_is_unreadable(tmp_path: Path) -> None:
    assert hash_records([record(str(tmp_path / "gone.jpg"))]) == [None]


def test_contradicting_labels_are_told_apart_from_plain_copies(tmp_path: Path) -> None:
    for seed, names in enumerate(
        [("AK/a", "NV/a"), ("SK/b", "MEL/b"), ("SK/c", "MEL/c2"), ("NV/d", "NV/d2"), ("NV/e",)]
    ):
        for name in names:
            make_image(tmp_path / f"{name}.png", seed)
    records = read_dataset(tmp_path).records
    findings = basic_findings(records, hash_records(records))
    contradictions = of_kind(findings, "contradicting_labels")
    assert {f.images for f in contradictions} == {
        ("AK/a.png", "NV/a.png"),
        ("MEL/b.png", "SK/b.png"),
        ("MEL/c2.png", "SK/c.png"),
    }
    assert contradictions[0].labels == ("AK", "NV")
    assert [f.images for f in of_kind(findings, "identical_images")] == [("NV/d.png", "NV/d2.png")]
    lines = summary(findings)
    assert lines[0] == "3 images with different diagnoses, byte for byte the same (1 AK/NV, 2 MEL/SK)"
    assert lines[1] == "1 image in several identical files with the same diagnosis (2 files)"
    assert lines[2].startswith("4 classes with fewer than 20 lesions")


def test_three_labels_are_all_named() -> None:
    records = [record("a", "AK"), record("b", "NV"), record("c", "MEL")]
    assert "(1 AK/MEL/NV)" in summary(basic_findings(records, ["1", "1", "1"]))[0]


def test_the_same_picture_on_both_sides() -> None:
    records = [record("a", split="train"), record("b", split="test"), record("c", split="test")]
    assert leaks(records, ["1", "1", "2"])["same_image_across_split"] == [("a", "b")]
    by_id = [
        record("a", split="train", isic_id="ISIC_0000001"),
        record("b", split="test", isic_id="ISIC_0000001", lesion_id="L"),
    ]
    assert leaks(by_id) == {
        "same_image_across_split": [("a", "b")],
        "lesion_across_split": [],
        "patient_across_split": [],
    }


def test_a_lesion_finding_holds_other_pictures_only() -> None:
    records = [
        record("same-train", split="train", lesion_id="L1"),
        record("same-test", split="test", lesion_id="L1"),
        record("other-test", split="test", lesion_id="L1"),
        record("alone", split="test", lesion_id="L2"),
    ]
    found = leaks(records, ["1", "1", "2", "3"])
    assert found["same_image_across_split"] == [("same-train", "same-test")]
    assert found["lesion_across_split"] == [("same-train", "other-test")]
    findings = basic_findings(records, ["1", "1", "2", "3"])
    assert of_kind(findings, "lesion_across_split")[0].roles == ("train", "test")
    assert "1 lesion on both sides of the split, in different pictures (images: 1 in test, 1 in train)" in summary(
        findings
    )


def test_a_patient_finding_holds_other_lesions_only() -> None:
    records = [
        record("a", split="train", lesion_id="L1", patient_id="P"),
        record("b", split="test", lesion_id="L1", patient_id="P"),
        record("c", split="select", lesion_id="L2", patient_id="P"),
    ]
    found = leaks(records)
    assert found["lesion_across_split"] == [("a", "b")]
    assert found["patient_across_split"] == [("a", "b", "c")]
    assert leaks(records[:2])["patient_across_split"] == []


def test_roles_stand_in_for_the_split_and_none_is_no_side() -> None:
    records = [record("a", lesion_id="L"), record("b", lesion_id="L")]
    hashes: list[str | None] = ["1", "2"]
    assert of_kind(basic_findings(records, hashes), "lesion_across_split") == []
    assert of_kind(basic_findings(records, hashes, ["train", None]), "lesion_across_split") == []
    assert len(of_kind(basic_findings(records, hashes, ["train", "test"]), "lesion_across_split")) == 1


def test_small_classes_count_lesions_not_images() -> None:
    records = [record(f"{i}", "DF", lesion_id=f"L{i % 3}") for i in range(40)]
    records += [record(f"n{i}", "NV") for i in range(20)]
    (finding,) = basic_findings(records, [str(i) for i in range(60)])
    assert (finding.kind, finding.severity) == ("class_too_small", "warning")
    assert finding.evidence.startswith("DF has 40 images of 3 lesions")
    assert summary([finding]) == ["1 class with fewer than 20 lesions (images: DF 40)"]


def test_a_clean_set_has_no_findings_and_hashes_must_fit() -> None:
    records = [record(str(i)) for i in range(20)]
    assert basic_findings(records, [str(i) for i in range(20)]) == []
    assert summary([]) == []
    with pytest.raises(DataError, match="3 hashes for 20 records"):
        basic_findings(records, ["1", "2", "3"])
