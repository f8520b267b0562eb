"""Each collection is read as it is published and as our extracts lie; at the end the real folder is counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dermlens.data.records import Record
from dermlens.errors import DataError
from scripts.default_model.sources import BCN, HAM10000, MILK10K, MSK, PAD, origin_of, read_sources

EXTRACT = "image,isic_id,isic2019,lesion_id,age_approx,sex,anatom_site\n"


def touch(root: Path, *names: str) -> None:
    """Make files that have an image's name; reading opens none of them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_ham10000_and_isic9_are_two_archives(tmp_path: Path) -> None:
    touch(tmp_path / "ham10000", "HAM10000_images_part_1/ISIC_0024307.jpg")
    write(
        tmp_path / "ham10000" / "HAM10000_metadata",
        "lesion_id,image_id,dx,dx_type,age,sex,localization\nHAM_1,ISIC_0024307,akiec,histo,80.0,male,scalp\n",
    )
    touch(tmp_path / "isic9", "Train/nevus/ISIC_0024307(1).jpg", "Test/seborrheic keratosis/ISIC_0000031.jpg")
    ham, seborrheic, copy = read_sources(tmp_path, ["ham10000", "isic9"]).records
    assert (ham.image, ham.diagnosis, ham.lesion_id) == (
        "ham10000/HAM10000_images_part_1/ISIC_0024307.jpg",
        "AKIEC",
        "HAM_1",
    )
    assert (copy.isic_id, copy.diagnosis, copy.split, copy.frame_aspect) == ("ISIC_0024307", "NV", None, 4 / 3)
    assert (seborrheic.diagnosis, seborrheic.source) == ("SK", "isic9")
    assert [origin_of(r) for r in (ham, copy, seborrheic)] == [HAM10000, HAM10000, MSK]
    assert {r.domain for r in (ham, copy, seborrheic)} == {"dermoscopic"}


def test_extracts_of_isic_2019(tmp_path: Path) -> None:
    touch(tmp_path / "msk", "images/ISIC_0000009.webp")
    write(tmp_path / "msk/msk.csv", EXTRACT + "images/ISIC_0000009.webp,ISIC_0000009,NV,,30,Female,back\n")
    touch(tmp_path / "bcn84", "images/ISIC_0053879.jpg")
    write(tmp_path / "bcn84/bcn84.csv", EXTRACT + "images/ISIC_0053879.jpg,ISIC_0053879,SCC,BCN_7,85,,\n")
    msk, bcn = read_sources(tmp_path, ["msk", "bcn84"]).records
    assert (msk.lesion_id, msk.age_approx, msk.sex, msk.anatom_site) == (None, 30.0, "female", "back")
    assert (bcn.diagnosis, bcn.lesion_id, bcn.sex, bcn.image) == ("SCC", "BCN_7", None, "bcn84/images/ISIC_0053879.jpg")
    assert [origin_of(msk), origin_of(bcn)] == [MSK, BCN]
    assert (msk.licence, bcn.source, bcn.domain) == ("CC BY-NC 4.0", "bcn84", "dermoscopic")


def test_isic_2019_as_published_is_divided_by_archive(tmp_path: Path) -> None:
    names = ("ISIC_0000002_downsampled", "ISIC_0024307", "ISIC_0053879")
    touch(tmp_path / "isic2019", *(f"ISIC_2019_Training_Input/{name}.jpg" for name in names))
    header = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
    rows = "".join(f"{name},0,1,0,0,0,0,0,0,0\n" for name in names)
    write(tmp_path / "isic2019/ISIC_2019_Training_GroundTruth.csv", header + rows)
    write(
        tmp_path / "isic2019/ISIC_2019_Training_Metadata.csv",
        "image,age_approx,anatom_site_general,lesion_id,sex\nISIC_0053879,60,back,BCN_7,female\n",
    )
    msk, bcn = read_sources(tmp_path, ["msk", "bcn84"]).records
    assert (msk.isic_id, bcn.isic_id, bcn.lesion_id) == ("ISIC_0000002", "ISIC_0053879", "BCN_7")
    assert [origin_of(msk), origin_of(bcn)] == [MSK, BCN]


def check_milk10k(tmp_path: Path) -> None:
    close_up, dermoscopic = sorted(read_sources(tmp_path, ["milk10k"]).records, key=lambda r: str(r.domain))
    assert [close_up.domain, dermoscopic.domain] == ["close-up", "dermoscopic"]
    assert [close_up.isic_id, dermoscopic.isic_id] == ["ISIC_8149219", "ISIC_4671410"]
    for record in (close_up, dermoscopic):
        assert (record.diagnosis, record.lesion_id, record.skin_tone) == ("SCCKA", "IL_0000652", "1")
        assert (record.age_approx, record.sex, record.anatom_site) == (70.0, "male", "head_neck_face")
        assert record.fitzpatrick is None and record.dx_type == "histopathology"
        assert record.path.is_file() and origin_of(record) == MILK10K


def test_milk10k_as_our_extract(tmp_path: Path) -> None:
    names = ("ISIC_8149219", "clinical"), ("ISIC_4671410", "dermoscopic")
    touch(tmp_path / "milk10k", *(f"images/{name}.webp" for name, _ in names))
    write(
        tmp_path / "milk10k/milk10k.csv",
        "image,isic_id,lesion_id,modality,milk10k,isic2019,diagnosis_full,diagnosis_confirm_type,age_approx,sex,"
        "anatom_site,skin_tone\n"
        + "".join(
            f"images/{name}.webp,{name},IL_0000652,{kind},SCCKA,SCC,Keratoacanthoma,histopathology,70,male,"
            "head_neck_face,1\n"
            for name, kind in names
        ),
    )
    check_milk10k(tmp_path)


def test_milk10k_as_published(tmp_path: Path) -> None:
    folder = tmp_path / "milk10k"
    names = ("ISIC_8149219", "clinical: close-up"), ("ISIC_4671410", "dermoscopic")
    touch(folder, *(f"MILK10k_Training_Input/IL_0000652/{name}.jpg" for name, _ in names))
    codes = "AKIEC,BCC,BEN_OTH,BKL,DF,INF,MAL_OTH,MEL,NV,SCCKA,VASC"
    write(
        folder / "MILK10k_Training_GroundTruth.csv",
        f"lesion_id,{codes}\nIL_0000652,{','.join(str(float(c == 'SCCKA')) for c in codes.split(','))}\n",
    )
    write(
        folder / "MILK10k_Training_Metadata.csv",
        "lesion_id,image_type,isic_id,attribution,copyright_license,age_approx,sex,skin_tone_class,site\n"
        + "".join(f"IL_0000652,{kind},{name},MILK,CC-BY-NC,70,male,1,head_neck_face\n" for name, kind in names),
    )
    write(
        folder / "MILK10k_Training_Supplement.csv",
        "isic_id,diagnosis_full,diagnosis_confirm_type\n"
        + "".join(f"{name},Keratoacanthoma,histopathology\n" for name, _ in names),
    )
    check_milk10k(tmp_path)
    (folder / "MILK10k_Training_Input/IL_0000652/ISIC_4671410.jpg").unlink()
    with pytest.raises(DataError, match="'ISIC_4671410', which is not below") as caught:
        read_sources(tmp_path, ["milk10k"])
    assert caught.value.code == "missing_files"


@pytest.mark.parametrize("lesion", ["PAT_46_881", "881"])
def test_pad_ufes_20_as_published_and_as_our_extract(tmp_path: Path, lesion: str) -> None:
    touch(tmp_path / "pad", "imgs_part_1/PAT_46_881_939.png")
    write(
        tmp_path / "pad/metadata.csv",
        "patient_id,lesion_id,age,gender,fitspatrick,region,diagnostic,img_id,biopsed\n"
        f"PAT_46,{lesion},55,FEMALE,3.0,NECK,ACK,PAT_46_881_939.png,True\n",
    )
    (record,) = read_sources(tmp_path, ["pad"]).records
    assert (record.diagnosis, record.patient_id, record.lesion_id) == ("AK", "PAT_46", "PAT_46_881")
    assert (record.fitzpatrick, record.domain, record.licence) == ("3", "close-up", "CC BY 4.0")
    assert (record.isic_id, origin_of(record)) == (None, PAD)


def test_a_table_that_names_a_missing_picture_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "msk/msk.csv", EXTRACT + "images/ISIC_0000009.webp,ISIC_0000009,NV,,,,\n")
    with pytest.raises(DataError, match=r"'images/ISIC_0000009.webp', which is not below"):
        read_sources(tmp_path, ["msk"])


def test_the_origin_goes_by_id_not_by_folder() -> None:
    record = Record(Path("x"), "isic9/Train/nevus/x.jpg", "NV")
    assert origin_of(record) == MSK, "what has no id is of the older archive"


@pytest.mark.data
def test_every_collection_is_read_whole(data_dir: Path) -> None:
    records = read_sources(data_dir).records
    assert len({r.image for r in records}) == len(records)
    assert Counter((origin_of(r), r.domain) for r in records) == {
        (HAM10000, "dermoscopic"): 11_529,
        (MSK, "dermoscopic"): 2_910,
        (MILK10K, "dermoscopic"): 4_206,
        (MILK10K, "close-up"): 4_206,
        (PAD, "close-up"): 345,
        (BCN, "dermoscopic"): 12_381,
    }
