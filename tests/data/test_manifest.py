"""The reference repairs labels and ties lesions together; a written manifest reads back the same."""

from __future__ import annotations

import csv
import errno
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from dermlens.data.manifest import MANIFEST_COLUMNS, manifest_row, manifest_sha256, read_dataset, read_reference
from dermlens.data.records import Dataset, Record, data_fingerprint
from dermlens.data.tables import write_table
from dermlens.errors import DataError, StorageError, UsageError

REFERENCE = """isic_id,isic2019_diagnosis,lesion_id,dx_type,age_approx,sex,anatom_site
ISIC_0000001,AK,HAM_1,histo,70.0,male,face
ISIC_0000002,SCC,HAM_2,,,,
ISIC_0000003,MEL,,,55.0,female,back
"""


def touch(root: Path, *names: str) -> Path:
    """Make files that have an image's name; `read_dataset` opens none of them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def by_image(dataset: Dataset) -> dict[str, Record]:
    return {record.image: record for record in dataset.records}


def refused(path: Path, code: str, **options: Path) -> str:
    """Return the message and remedy of the DataError that reading must raise."""
    with pytest.raises(DataError) as caught:
        read_dataset(path, **options)  # type: ignore[arg-type]
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ham(root: Path) -> Path:
    touch(root, "HAM10000_images_part_1/ISIC_0000001.jpg", "images_224/ISIC_0000002.jpg")
    touch(root, "images_200x150/ISIC_0000002.jpg", "images_224/ISIC_0000009.jpg")
    write(
        root / "HAM10000_metadata.csv",
        "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
        "HAM_1,ISIC_0000001,akiec,histo,80.0,male,scalp\n"
        "HAM_2,ISIC_0000002,akiec,histo,,unknown,unknown\n",
    )
    return root


# Reference and task


def test_reference_fills_in_but_leaves_labels_as_they_are(tmp_path: Path) -> None:
    reference = write(tmp_path / "reference.csv", REFERENCE)
    touch(tmp_path / "data", "nevus/ISIC_0000001.jpg", "akiec/ISIC_0000002.jpg", "sk/other.jpg")
    dataset = read_dataset(tmp_path / "data", reference=reference)
    records = by_image(dataset)
    known = records["nevus/ISIC_0000001.jpg"]
    assert (known.diagnosis, known.lesion_id, known.age_approx) == ("NV", "HAM_1", 70.0)
    assert (known.sex, known.anatom_site) == ("male", "face")
    assert records["akiec/ISIC_0000002.jpg"].diagnosis == "AKIEC"
    assert dataset.notes == ("The reference has 2 of 3 images and adds 2 lesion ids.",)


def test_isic2019_takes_the_reference_then_maps_then_leaves_out(tmp_path: Path) -> None:
    reference = write(tmp_path / "reference.csv", REFERENCE)
    touch(tmp_path / "data", "nevus/ISIC_0000001.jpg", "akiec/ISIC_0000002.jpg", "akiec/ISIC_0000008.jpg")
    touch(tmp_path / "data", "sk/other.jpg", "sk/ISIC_0000003.jpg", "eczema/e.jpg")
    dataset = read_dataset(tmp_path / "data", reference=reference, task="isic2019")
    assert {image: r.diagnosis for image, r in by_image(dataset).items()} == {
        "nevus/ISIC_0000001.jpg": "AK",
        "akiec/ISIC_0000002.jpg": "SCC",
        "sk/ISIC_0000003.jpg": "MEL",
        "sk/other.jpg": "BKL",
    }
    assert dataset.notes[1:] == (
        "3 labels are replaced by the reference's: 1 AKIEC to SCC, 1 NV to AK, 1 SK to MEL.",
        "2 images are left out, since they have no ISIC 2019 class: 1 AKIEC, 1 eczema.",
    )


def test_reference_faults(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", "eczema/a.jpg")
    wrong = write(tmp_path / "wrong.csv", "isic_id,label\n")
    assert "Missing: isic2019_diagnosis" in refused(data, "missing_columns", reference=wrong)
    with pytest.raises(UsageError, match="does not exist"):
        read_dataset(data, reference=tmp_path / "none.csv")
    with pytest.raises(DataError, match="None of the 1 images"):
        read_dataset(data, task="isic2019")


# Writing


def write_manifest(records: Iterable[Record], path: Path, root: Path) -> None:
    write_table(path, MANIFEST_COLUMNS, [manifest_row(record, root) for record in records])


def images_of(path: Path) -> Iterable[str]:
    with path.open(newline="") as file:
        return [row["image"] for row in csv.DictReader(file)]


def test_written_manifest_reads_back_the_same(tmp_path: Path) -> None:
    data = ham(tmp_path / "data")
    dataset = read_dataset(data, frame_aspect=4 / 3)
    write_manifest(dataset.records, tmp_path / "out" / "mine.csv", data)
    again = read_dataset(tmp_path / "out" / "mine.csv", images=data)
    assert again.records == dataset.records
    write_manifest(dataset.records, tmp_path / "full.csv", tmp_path / "out")
    assert all(Path(image).is_absolute() for image in images_of(tmp_path / "full.csv"))
    assert [r.path for r in read_dataset(tmp_path / "full.csv").records] == [r.path for r in dataset.records]


def test_domain_and_skin_tone_are_written(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    known = replace(read_dataset(ham(tmp_path / "data")).records[0], domain="slit lamp", skin_tone="4")
    write_manifest([known], tmp_path / "mine.csv", tmp_path / "data")
    (again,) = read_dataset(tmp_path / "mine.csv", images=tmp_path / "data").records
    assert (again.domain, again.skin_tone) == ("slit lamp", "4")


def test_failed_write_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    old = write(tmp_path / "manifest.csv", "old")
    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(StorageError, match="No space left on device"):
        write_manifest([], old, tmp_path)
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]
    with pytest.raises(StorageError, match="cannot be written"):
        write_manifest([], old / "manifest.csv", tmp_path)


def test_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Iterable[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert "Permission denied" in refused(tmp_path, "cannot_read")


def test_fingerprint_depends_on_content_not_on_order_or_name(tmp_path: Path) -> None:
    a, b = Record(tmp_path / "a", "a", "MEL", lesion_id="L1"), Record(tmp_path / "b", "b", "NV")
    base = data_fingerprint([a, b], ["1", "2"])
    assert data_fingerprint([b, a], ["2", "1"]) == base
    assert data_fingerprint([replace(a, image="z", path=tmp_path / "z"), b], ["1", "2"]) == base
    assert data_fingerprint([replace(a, diagnosis="NV"), b], ["1", "2"]) != base
    assert data_fingerprint([a, b], ["1", "3"]) != base
    assert data_fingerprint([a, b], ["1", None]) != base
    with pytest.raises(DataError, match="1 hashes for 2 records"):
        data_fingerprint([a, b], ["1"])


def test_a_reference_alone_is_diagnoses_by_id(tmp_path: Path) -> None:
    rows = "ISIC_0000001,mel,L1\nISIC_0000002,,L2\nISIC_0000003,basal cell carcinoma,\n"
    (tmp_path / "r.csv").write_text(f"isic_id,isic2019_diagnosis,lesion_id\n{rows}")
    assert read_reference(tmp_path / "r.csv") == {"ISIC_0000001": "MEL", "ISIC_0000003": "BCC"}
    with pytest.raises(UsageError, match="does not exist"):
        read_reference(tmp_path / "gone.csv")
    (tmp_path / "other.csv").write_text("name,diagnosis\na,mel\n")
    with pytest.raises(DataError, match="Missing: isic_id, isic2019_diagnosis"):
        read_reference(tmp_path / "other.csv")


def test_a_data_set_knows_its_origin_and_a_manifest_its_hash(tmp_path: Path) -> None:
    (tmp_path / "NV").mkdir()
    (tmp_path / "NV" / "a.png").write_bytes(b"x")
    folders = read_dataset(tmp_path)
    assert folders.origin == tmp_path and folders.reference is None and manifest_sha256(folders) is None
    (tmp_path / "manifest.csv").write_text("image,diagnosis\nNV/a.png,NV\n")
    by_file, by_folder = read_dataset(tmp_path / "manifest.csv"), read_dataset(tmp_path)
    assert by_file.origin == tmp_path / "manifest.csv" and by_folder.origin == tmp_path
    assert manifest_sha256(by_file) is not None
    assert manifest_sha256(by_file) == manifest_sha256(by_folder)
