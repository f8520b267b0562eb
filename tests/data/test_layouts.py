"""Every layout on disk gives the same records; every fault of a data set is one line with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from dermlens.data.manifest import read_dataset, read_pictures
from dermlens.data.records import Dataset, Record
from dermlens.errors import DataError, UsageError


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


# Folders


def test_folder_per_class(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "nevus/a.jpg",
        "nevus/deeper/ISIC_0000001.PNG",
        "Psoriasis/c.webp",
        "actinic_keratosis/d.tif",
    )
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "class folders"
    assert dataset.classes == ("AK", "NV", "Psoriasis")
    records = by_image(dataset)
    assert records["nevus/a.jpg"] == Record(tmp_path / "nevus/a.jpg", "nevus/a.jpg", "NV")
    assert records["nevus/deeper/ISIC_0000001.PNG"].isic_id == "ISIC_0000001"
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("folder", "role"),
    [("Train", "train"), ("TEST", "test"), ("val", "select"), ("Validation", "select"), ("valid", "select")],
)
def test_split_folders_in_any_case(tmp_path: Path, folder: str, role: str) -> None:
    touch(tmp_path, f"{folder}/nevus/a.jpg", "training/melanoma/b.jpg")
    records = by_image(read_dataset(tmp_path))
    assert records[f"{folder}/nevus/a.jpg"].split == role
    assert records["training/melanoma/b.jpg"].split == "train"
    assert {r.diagnosis for r in records.values()} == {"MEL", "NV"}


def test_hidden_files_and_strangers_are_left_out_and_counted(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a/1.jpg",
        "b/2.jpg",
        "a/.DS_Store",
        "a/._1.jpg",
        ".cache/x.jpg",
        "__MACOSX/a/1.jpg",
        "a/readme.txt",
    )
    touch(tmp_path, "loose.jpg", "notes.csv")
    (tmp_path / "c").mkdir()
    dataset = read_dataset(tmp_path)
    assert [r.image for r in dataset.records] == ["a/1.jpg", "b/2.jpg"]
    assert dataset.notes == (
        "1 images are outside the class folders and are left out.",
        "2 files are no images and are left out.",
        "1 class folders hold no images: c.",
        "Tables not used, since their columns are not known: notes.csv.",
    )


def test_wrapping_folder_is_stepped_into(tmp_path: Path) -> None:
    touch(tmp_path, "Skin cancer archive/Train/nevus/a.jpg", "Skin cancer archive/Test/nevus/b.jpg")
    dataset = read_dataset(tmp_path)
    assert dataset.root == tmp_path / "Skin cancer archive"
    assert [r.split for r in dataset.records] == ["test", "train"]


def test_names_of_one_diagnosis_are_joined_and_told(tmp_path: Path) -> None:
    touch(tmp_path, "nevus/a.jpg", "melanocytic nevi/b.jpg", "mel/c.jpg")
    dataset = read_dataset(tmp_path)
    assert dataset.classes == ("MEL", "NV")
    assert dataset.notes == ("Read as one diagnosis, NV: melanocytic nevi, nevus.",)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "a.jpg")
    data = touch(tmp_path / "data", "mel/b.jpg")
    (data / "nevus").symlink_to(elsewhere, target_is_directory=True)
    (data / "mel" / "loop").symlink_to(data, target_is_directory=True)
    assert set(by_image(read_dataset(data))) == {"mel/b.jpg", "nevus/a.jpg"}


def test_folder_faults(tmp_path: Path) -> None:
    assert "holds no images (1 other files)" in refused(touch(tmp_path / "none", "a/x.txt"), "no_images")
    (tmp_path / "empty").mkdir()
    assert "manifest.csv" in refused(tmp_path / "empty", "no_images")
    assert "no class folders" in refused(touch(tmp_path / "flat", "a.jpg", "b.jpg"), "no_classes")
    assert "no class folders" in refused(touch(tmp_path / "flat2", "Train/a.jpg"), "no_classes")
    assert "mixes" in refused(touch(tmp_path / "mixed", "Train/a/1.jpg", "nevus/2.jpg"), "mixed_folders")
    assert ".jpg file" in refused(touch(tmp_path / "one", "a.jpg") / "a.jpg", "not_a_dataset")
    with pytest.raises(UsageError, match="does not exist"):
        read_dataset(tmp_path / "missing")
    with pytest.raises(UsageError, match="as_is, isic2019"):
        read_dataset(tmp_path, task="eight")  # type: ignore[arg-type]


# Pictures without labels


def test_pictures_need_no_labels(tmp_path: Path) -> None:
    touch(tmp_path / "flat", "a.jpg", "ISIC_0000001.jpg", "nevus/b.jpg", "2024/Psoriasis/c.jpg", "notes.csv")
    records = by_image(read_pictures(tmp_path / "flat", classes=["Psoriasis"]))
    assert {image: record.diagnosis for image, record in records.items()} == {
        "a.jpg": "",
        "ISIC_0000001.jpg": "",
        "nevus/b.jpg": "NV",
        "2024/Psoriasis/c.jpg": "Psoriasis",
    }
    assert records["ISIC_0000001.jpg"].isic_id == "ISIC_0000001"
    assert by_image(read_pictures(tmp_path / "flat"))["2024/Psoriasis/c.jpg"].diagnosis == ""
    with pytest.raises(DataError, match="holds no images"):
        read_pictures(touch(tmp_path / "none", "a.txt"))


def test_a_table_of_pictures_needs_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    table = write(tmp_path / "list.csv", "image_name,lesion_id\na,L1\nb,\n")
    assert [(r.image, r.diagnosis, r.lesion_id) for r in read_pictures(table).records] == [
        ("a.jpg", "", "L1"),
        ("b.jpg", "", None),
    ]
    write(table, "image,diagnosis\na,mel\nb,\n")
    assert [r.diagnosis for r in read_pictures(table).records] == ["MEL", ""]
    with pytest.raises(DataError, match="Missing: image"):
        read_pictures(write(table, "name\na\n"))
    reference = write(tmp_path / "reference.csv", "isic_id,isic2019_diagnosis,lesion_id\nISIC_0000001,MEL,HAM_1\n")
    found = read_pictures(touch(tmp_path / "isic", "ISIC_0000001.jpg"), reference=reference)
    assert [r.lesion_id for r in found.records] == ["HAM_1"] and "adds 1 lesion ids" in found.notes[0]


# CSV manifests


def test_manifest_with_all_columns(tmp_path: Path) -> None:
    touch(tmp_path, "pictures/a.jpg", "pictures/b.png", "pictures/c.jpg")
    table = write(
        tmp_path / "manifest.csv",
        "\ufeffImage,diagnosis,lesion_id,patient_id,split,age_approx,sex,anatom_site,source,frame_aspect\n"
        "pictures/a.jpg,ACK,L1,P1,train,70,MALE,face,clinic,1.5\n"
        "b,eczema,,,val,,unknown,,,\n"
        "c.jpg,nv,,,,nan,,,,\n",
    )
    for path in (tmp_path, table):
        dataset = read_dataset(path, frame_aspect=4 / 3)
        first, second, third = dataset.records
        assert first == Record(
            tmp_path / "pictures/a.jpg",
            "pictures/a.jpg",
            "AK",
            lesion_id="L1",
            patient_id="P1",
            split="train",
            age_approx=70.0,
            sex="male",
            anatom_site="face",
            source="clinic",
            frame_aspect=1.5,
        )
        assert (second.image, second.diagnosis, second.split, second.sex) == (
            "pictures/b.png",
            "eczema",
            "select",
            None,
        )
        assert (third.image, third.age_approx, third.frame_aspect) == ("pictures/c.jpg", None, 4 / 3)


@pytest.mark.parametrize("column", ["licence", "license", "copyright_license"])
def test_the_licence_of_a_picture_is_read(tmp_path: Path, column: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path / "manifest.csv", f"image,diagnosis,{column}\na.jpg,NV,CC-0\nb.jpg,NV,\n")
    assert [record.licence for record in read_dataset(tmp_path).records] == ["CC-0", None]


@pytest.mark.parametrize("column", ["domain", "modality"])
def test_the_domain_of_a_picture_is_read_and_its_usual_names_are_one(tmp_path: Path, column: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    rows = "a.jpg,NV,clinical\nb.jpg,NV,Dermoscopy\nc.jpg,NV,slit lamp\nd.jpg,NV,\n"
    write(tmp_path / "manifest.csv", f"image,diagnosis,{column}\n{rows}")
    assert [r.domain for r in read_dataset(tmp_path).records] == ["close-up", "dermoscopic", "slit lamp", None]


@pytest.mark.parametrize("column", ["skin_tone", "skin_tone_class"])
def test_skin_tone_is_no_skin_type(tmp_path: Path, column: str) -> None:
    touch(tmp_path, "a.jpg")
    write(tmp_path / "manifest.csv", f"image,diagnosis,{column},fitzpatrick\na.jpg,NV,5,1\n")
    (record,) = read_dataset(tmp_path).records
    assert (record.skin_tone, record.fitzpatrick) == ("5", "1")


def test_manifest_elsewhere_with_images_folder(tmp_path: Path) -> None:
    touch(tmp_path / "pictures", "a.jpg", "unlisted.jpg")
    table = write(tmp_path / "tables" / "mine.csv", "image;diagnosis\na;mel\n")
    dataset = read_dataset(table, images=tmp_path / "pictures")
    assert dataset.root == tmp_path / "pictures"
    assert [r.path for r in dataset.records] == [tmp_path / "pictures" / "a.jpg"]
    assert dataset.notes == (f"1 images below {tmp_path / 'pictures'} are in no row of mine.csv and are left out.",)


def test_rows_that_a_repair_excluded_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path / "manifest.csv", "image,diagnosis,included\na.jpg,mel,1\nb.jpg,nv,0\n")
    dataset = read_dataset(tmp_path)
    assert [r.image for r in dataset.records] == ["a.jpg"]
    assert dataset.notes == ("1 images are marked as not included in manifest.csv.",)


def test_a_repaired_manifest_says_why_images_are_not_included(tmp_path: Path) -> None:
    rows = "a.jpg,mel,1,\nb.jpg,nv,0,leak: the lesion L\nc.jpg,nv,0,leak: the lesion M\nd.jpg,nv,0,duplicate: of a\n"
    touch(tmp_path, "a.jpg")
    write(tmp_path / "manifest.csv", f"image,diagnosis,included,reason\n{rows}e.jpg,nv,0,\n")
    dataset = read_dataset(tmp_path)
    assert [r.image for r in dataset.records] == ["a.jpg"]
    assert dataset.notes[0] == (
        "4 images are marked as not included in manifest.csv (2 leak, 1 duplicate, 1 no reason given)."
    )


def test_manifest_faults(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "x/c.jpg", "y/c.jpg")

    def fault(text: str, code: str) -> str:
        return refused(write(tmp_path / "mine.csv", text), code)

    message = fault(
        "image,diagnosis\n" + "".join(f"gone{i}.jpg,mel\n" for i in range(5)) + "a.jpg,nv\n", "missing_files"
    )
    assert "5 of the 6 images" in message
    assert "gone0.jpg, gone1.jpg, gone2.jpg and 2 more" in message
    assert "Missing: diagnosis" in fault("image,label\na.jpg,mel\n", "missing_columns")
    assert "no diagnosis for 'a.jpg'" in fault("image,diagnosis\na.jpg,\n", "no_diagnosis")
    assert "'holdout'" in fault("image,diagnosis,split\na.jpg,mel,holdout\n", "bad_split")
    assert "x/c.jpg, y/c.jpg" in fault("image,diagnosis\nc.jpg,mel\n", "ambiguous_image")
    assert "more than once: a.jpg" in fault("image,diagnosis\na.jpg,mel\na,nv\n", "listed_twice")
    assert "'old'" in fault("image,diagnosis,age_approx\na.jpg,mel,old\n", "bad_csv")
    assert "line 2 has 3 cells" in fault("image,diagnosis\na.jpg,mel,nv\n", "bad_csv")
    assert "is empty" in fault("", "bad_csv")
    assert "no rows" in fault("image,diagnosis\n", "no_images")
    (tmp_path / "mine.csv").write_bytes(b"image,diagnosis\na.jpg,n\xe6vus\n")
    assert "not UTF-8" in refused(tmp_path / "mine.csv", "bad_csv")


# Published collections


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


def test_ham10000(tmp_path: Path) -> None:
    dataset = read_dataset(ham(tmp_path))
    assert dataset.layout == "HAM10000"
    assert dataset.classes == ("AKIEC",)
    first = dataset.records[0]
    assert (first.lesion_id, first.age_approx, first.sex, first.anatom_site) == (
        "HAM_1",
        80.0,
        "male",
        "scalp",
    )
    assert [(r.isic_id, r.source) for r in dataset.records] == [
        ("ISIC_0000001", "HAM10000_images_part_1"),
        ("ISIC_0000002", "images_200x150"),
        ("ISIC_0000002", "images_224"),
    ]
    assert (dataset.records[1].sex, dataset.records[1].anatom_site) == (None, None)
    assert "1 images below" in dataset.notes[0]
    assert {r.licence for r in dataset.records} == {"CC BY-NC 4.0"}


def test_isic_2019_one_hot_with_metadata(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "ISIC_2019_Training_Input/ISIC_0000001_downsampled.jpg",
        "ISIC_2019_Training_Input/ISIC_0000002.jpg",
    )
    write(
        tmp_path / "ISIC_2019_Training_GroundTruth.csv",
        "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
        "ISIC_0000001_downsampled,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
        "ISIC_0000002,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0\n",
    )
    write(
        tmp_path / "ISIC_2019_Training_Metadata.csv",
        "image,age_approx,anatom_site_general,lesion_id,sex\nISIC_0000002,60.0,anterior torso,BCN_7,female\n",
    )
    first, second = read_dataset(tmp_path).records
    assert (first.diagnosis, first.isic_id, first.lesion_id) == ("NV", "ISIC_0000001", None)
    assert (second.diagnosis, second.lesion_id, second.age_approx) == ("SCC", "BCN_7", 60.0)
    assert (second.sex, second.anatom_site) == ("female", "anterior torso")


def test_isic_2018_one_hot_and_its_faults(tmp_path: Path) -> None:
    touch(tmp_path, "ISIC_0000001.jpg")
    header = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
    table = write(tmp_path / "truth.csv", header + "ISIC_0000001,0,0,0,1,0,0,0\n")
    assert read_dataset(tmp_path).classes == ("AKIEC",)
    write(table, header + "ISIC_0000001,0,0,0,0.4,0.3,0,0\n")
    assert "0 classes" in refused(tmp_path, "bad_csv")
    write(tmp_path / "second.csv", header)
    assert "second.csv, truth.csv" in refused(tmp_path, "several_tables")


def test_isic_2020(tmp_path: Path) -> None:
    touch(tmp_path, "train/ISIC_0000001.jpg", "train/ISIC_0000002.jpg")
    write(
        tmp_path / "train.csv",
        "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
        "ISIC_0000001,IP_1,male,45.0,head/neck,unknown,benign,0\n"
        "ISIC_0000002,IP_1,,,,melanoma,malignant,1\n",
    )
    first, second = read_dataset(tmp_path).records
    assert (first.diagnosis, first.patient_id, first.anatom_site) == ("unknown", "IP_1", "head/neck")
    assert second.diagnosis == "MEL"
    mapped = read_dataset(tmp_path, task="isic2019")
    assert mapped.classes == ("MEL",)
    assert mapped.notes == ("1 images are left out, since they have no ISIC 2019 class: 1 unknown.",)


def test_pad_ufes_20(tmp_path: Path) -> None:
    touch(tmp_path, "imgs_part_1/PAT_8_15_820.png", "imgs_part_2/PAT_9_16_821.png")
    write(
        tmp_path / "metadata.csv",
        "patient_id,lesion_id,smoke,age,region,diagnostic,gender,img_id,biopsed\n"
        "PAT_8,15,False,64,ARM,SEK,FEMALE,PAT_8_15_820.png,True\n"
        "PAT_9,16,,55,NECK,BOD,,PAT_9_16_821.png,True\n",
    )
    dataset = read_dataset(tmp_path)
    first = dataset.records[0]
    assert dataset.layout == "PAD-UFES-20"
    assert dataset.classes == ("BOD", "SK")
    assert (first.patient_id, first.lesion_id, first.age_approx) == ("PAT_8", "PAD_15", 64.0)
    assert (first.sex, first.anatom_site) == ("female", "ARM")
    assert read_dataset(tmp_path, task="isic2019").classes == ("BKL", "SCC")
