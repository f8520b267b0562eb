"""The whole audit, on a set spoiled on purpose and on the 9-class ISIC set, with the repair and the page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

import pictures
from dermlens.audit.embed import Embedder
from dermlens.audit.repair import write_repair
from dermlens.audit.report import print_audit, print_repair, write_audit, write_report
from dermlens.audit.run import run_audit
from dermlens.audit.verdict import Audit, as_json
from dermlens.data.manifest import read_dataset, read_pictures
from dermlens.errors import StorageError
from dermlens.networks.embedder import VERSION, embedder_graph


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module", autouse=True)
def few_trees() -> Iterator[None]:
    """Probe shortcuts with small forests: nothing here depends on their last digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dermlens.audit.shortcuts._TREES", 8)
        patch.setattr("dermlens.audit.run.SHORTCUTS_VERSION", "few trees")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.spoiled_set(tmp_path_factory.mktemp("spoiled") / "set")


@pytest.fixture(scope="module")
def found(data: Path) -> Audit:
    return run_audit(read_dataset(data), console=quiet())


def test_everything_that_was_spoiled_is_found_and_counted(found: Audit) -> None:
    wanted = {
        "images": 58,
        "unreadable": 1,
        "exact_duplicate_groups": 2,
        "near_duplicate_groups": 1,
        "contradicting_images": 1,
        "contradictions_by_pair": {"MEL/NV": 1},
        "test_images_under_another_label_in_train": 0,
        "test_images_with_lesion_in_train_other_image": 0,
        "test_images_with_lesion_in_train_any_image": 0,
        "test_images_leaked_any": 1,
        "labels_against_reference": None,
    }
    assert {name: found.counts[name] for name in wanted} == wanted
    kinds = {finding.kind for finding in found.findings}
    assert {"unreadable", "contradicting_labels", "same_image_across_split", "near_duplicates"} <= kinds
    assert found.ceiling == 1


def test_after_the_repair_a_second_audit_finds_no_error(found: Audit, data: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    write_repair(found.repair(), tmp_path / "repaired.csv", data)
    again = run_audit(read_dataset(tmp_path / "repaired.csv", images=data), console=quiet())
    assert [f for f in again.findings if f.severity == "error"] == []
    assert again.counts["images"] == 58 - 1 - 2 - 1 - 1  # broken, both copies of `both`, a `leak`, `small`
    assert before == {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}


def test_the_json_says_all_and_twice_the_same(found: Audit, data: Path, tmp_path: Path) -> None:
    repair = found.repair()
    report = found.as_dict(repair)
    write_audit(report, tmp_path / "out" / "audit.json")
    assert json.loads((tmp_path / "out" / "audit.json").read_text("utf-8")) == json.loads(as_json(report))
    assert len(report["findings"]) == len(found.findings)
    assert report["repair"]["included"] + report["repair"]["excluded"] == 58
    again = run_audit(read_dataset(data), cache=False, console=quiet())
    assert as_json(again.as_dict(again.repair())) == as_json(report)
    with pytest.raises(StorageError, match="audit could not be written"):
        write_audit(report, tmp_path / "out" / "audit.json" / "below.json")
    with pytest.raises(StorageError, match="page could not be written"):
        write_report(found, repair, tmp_path / "out" / "audit.json" / "page.html", manifest=None)


def test_the_page_needs_no_other_file_and_shows_the_pictures(found: Audit, tmp_path: Path) -> None:
    write_report(found, found.repair(), tmp_path / "audit.html", manifest=None)
    page = (tmp_path / "audit.html").read_text("utf-8")
    for sentence in found.verdict():
        assert sentence in page
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page
    assert "One picture, two diagnoses" in page and "Train/MEL/both.png" in page and "Train/NV/both.png" in page
    assert "melanoma (train)" in page and "melanocytic nevus (train)" in page
    assert page.count("<i>cannot be read</i>") == 1 and "not a diagnosis" in page
    assert page.index(found.verdict()[0]) < page.index("One picture, two diagnoses")
    assert "cannot be read" in page and "--repair --manifest repaired.csv" in page
    assert page.count('class="plot"') >= 2
    assert "more in audit.json" not in page and found._repr_html_().count("<p>") == 3


def test_the_summary_and_the_offer_on_the_terminal(found: Audit, data: Path) -> None:
    console = quiet()
    print_audit(found, console)
    print_repair(found.repair(), Path("fixed.csv"), found.dataset, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 of 56 pictures has two diagnoses" in text or "1 of 55 pictures has" in text
    assert f"dermlens train fixed.csv --images {data}" in text


def test_against_another_set(data: Path, tmp_path: Path) -> None:
    for index in range(2):
        pictures.save(tmp_path / "other/NV" / f"{index}.png", pictures.lesion(index))
    pictures.save(tmp_path / "other/MEL/1.jpg", pictures.lesion(1000), 60)
    found = run_audit(read_dataset(tmp_path / "other"), against=read_pictures(data), console=quiet())
    assert found.counts["against"]["same_picture"] == 2
    assert found.counts["against"]["near_duplicate"] == 1
    assert sum(f.kind == "shared_with_other_data" for f in found.findings) == 3


def test_against_pictures_without_labels(data: Path, tmp_path: Path) -> None:
    for index in range(2):
        pictures.save(tmp_path / "other" / f"{index}.png", pictures.lesion(index))
    pictures.save(tmp_path / "other/more/MEL/wrong.png", pictures.lesion(3))
    (tmp_path / "other.csv").write_text("image\n0.png\n1.png\n")
    for other, wanted in ((read_pictures(tmp_path / "other"), (3, 3, 1)), (tmp_path / "other.csv", (2, 2, 0))):
        if isinstance(other, Path):
            other.rename(tmp_path / "other" / "list.csv")
            other = read_pictures(tmp_path / "other" / "list.csv")
        found = run_audit(read_dataset(data), against=other, console=quiet())
        shared = found.counts["against"]
        assert (shared["images"], shared["same_picture"], shared["under_another_label"]) == wanted


def test_a_set_of_broken_files_is_audited_too(tmp_path: Path) -> None:
    for code in ("NV", "MEL"):
        (tmp_path / "set" / code).mkdir(parents=True)
        (tmp_path / "set" / code / "a.jpg").write_bytes(b"no image")
    found = run_audit(read_dataset(tmp_path / "set"), console=quiet())
    assert found.counts["unreadable"] == 2 and found.shortcuts is None and found.ceiling is None
    write_report(found, found.repair(), tmp_path / "audit.html", manifest=tmp_path / "m.csv")


def test_a_leak_into_a_validation_split_is_in_the_verdict(tmp_path: Path) -> None:
    for code, seed in (("NV", 1), ("MEL", 2)):
        for split in ("train", "val"):
            pictures.save(tmp_path / "set" / split / code / "same.png", pictures.lesion(seed))
    found = run_audit(read_dataset(tmp_path / "set"), console=quiet())
    assert "2 pictures, lesions or patients are on both sides" in found.verdict()[1]
    assert "repair it first" in found.verdict()[2]


def test_recompressed_copies_under_two_diagnoses_are_in_the_verdict(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for index in range(4):
        pictures.save(root / "Train/NV" / f"{index}.png", pictures.lesion(index))
        pictures.save(root / "Train/MEL" / f"{index}.png", pictures.lesion(100 + index))
        pictures.save(root / "Test/NV" / f"{index}.png", pictures.lesion(200 + index))
    for index in range(2):
        pictures.save(root / "Test/MEL" / f"copy{index}.jpg", pictures.lesion(index), 60)
    found = run_audit(read_dataset(root), console=quiet())
    assert found.verdict()[0] == "2 pictures have two diagnoses, in different files (inferred)."
    assert "2 of the 6 test images look like copies" in found.verdict()[1] and "at most 66.7 %" in found.verdict()[1]
    assert (found.ceiling, found.inferred_ceiling) == (1, pytest.approx(4 / 6, abs=1e-6))
    write_report(found, found.repair(), tmp_path / "audit.html", manifest=None)
    assert "0, 2 more in different files (inferred)" in (tmp_path / "audit.html").read_text("utf-8")

    (root / "Test/MEL/same.png").write_bytes((root / "Train/NV/3.png").read_bytes())
    found = run_audit(read_dataset(root), console=quiet())
    labels, test, _ = found.verdict()
    assert labels.startswith("1 of 14 pictures has two") and "2 more in different files (inferred)" in labels
    assert test.startswith("1 of the 7 test images show") and "and 2 more look like copies" in test
    assert "85.7 % (57.1 % with near copies counted as the same picture, inferred)" in test


def test_without_lesion_ids_nothing_is_said_to_be_free_of_leaks(tmp_path: Path) -> None:
    for index, (split, code) in enumerate((s, c) for s in ("train", "test") for c in ("NV", "MEL")):
        for number in range(5):
            pictures.save(tmp_path / "set" / split / code / f"{number}.png", pictures.lesion(10 * index + number))
    found = run_audit(read_dataset(tmp_path / "set"), console=quiet())
    _, test, advice = found.verdict()
    assert test.startswith("None of the 10 test images is known to be in training, by content and looks")
    assert "20 of 20 images have no lesion id" in test and advice.startswith(
        "You can train on this data set; first look at the warnings below."
    )

    rows = [f"{r.image},{r.diagnosis},{r.split},L{number}" for number, r in enumerate(found.dataset.records)]
    (tmp_path / "m.csv").write_text("\n".join(["image,diagnosis,split,lesion_id", *rows]))
    found = run_audit(read_dataset(tmp_path / "m.csv", images=tmp_path / "set"), console=quiet())
    _, test, advice = found.verdict()
    assert test.startswith("None of the 10 test images is in") and advice.startswith("You can train on this data set")


def test_names_that_look_like_markup_do_no_harm(tmp_path: Path) -> None:
    root = tmp_path / "a $set [red]"
    for number, code in enumerate(("<script>", "$images [bold]", "naïve é")):
        for index in range(6):
            pictures.save(root / code / f"{index}.png", pictures.lesion(10 * number + index))
    found = run_audit(read_dataset(root), console=quiet())
    console = quiet()
    print_audit(found, console)
    write_report(found, found.repair(), tmp_path / "audit.html", manifest=None)
    page = (tmp_path / "audit.html").read_text("utf-8")
    assert "<script>" not in page and "a $set [red]" in page
    assert "$images [bold]" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(embedder_graph(quiet()), VERSION)


def test_crops_and_wrong_labels_are_found_and_kept(tmp_path: Path, embedder: Embedder) -> None:
    root = tmp_path / "set"
    for place, code in enumerate(("NV", "MEL")):
        for index in range(12):
            image = pictures.detailed(100 * place + index)
            image = cv2.GaussianBlur(image, (0, 0), 8) if place else image
            pictures.save(root / "Train" / code / f"{index}.png", image)
    pictures.save(root / "Train/NV/blurred.png", cv2.GaussianBlur(pictures.detailed(700), (0, 0), 8))
    pictures.save(root / "Test/NV/crop.jpg", np.ascontiguousarray(pictures.detailed(0)[15:-25, 20:-20]))
    pictures.save(root / "Test/MEL/other.png", cv2.GaussianBlur(pictures.detailed(800), (0, 0), 8))
    dataset = read_dataset(root)
    found = run_audit(dataset, embedder=embedder, console=quiet())
    assert found.counts["near_duplicate_pairs_by_embedding"] == 1 == found.counts["test_images_near_duplicate_in_train"]
    suspects = [f for f in found.findings if f.kind == "label_suspect"]
    assert ("Train/NV/blurred.png", "MEL") in [(f.images[0], f.suggested[0]) for f in suspects]
    assert len(suspects) == found.counts["label_suspects"] == sum(found.counts["label_suspects_by_pair"].values())
    write_report(found, found.repair(), tmp_path / "audit.html", manifest=None)
    page = (tmp_path / "audit.html").read_text("utf-8")
    assert "given: melanocytic nevus (train); suggested: melanoma" in page and "Test/NV/crop.jpg" in page
    console = quiet()
    again = run_audit(dataset, embedder=Embedder(tmp_path / "none", VERSION), console=console)
    assert as_json(again.as_dict()) == as_json(found.as_dict())
    assert "Looking for wrong" not in console.file.getvalue()  # type: ignore[attr-defined]
    run_audit(dataset, cache=False, console=console)
    assert "Looking for shortcuts" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.data
@pytest.mark.parametrize("embedding", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_nine_class_isic_set(
    embedding: bool,
    data_dir: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not embedding:  # half of the time, for nothing that is asserted here
        monkeypatch.setattr("dermlens.audit.run.read_artefacts", lambda *_, **__: {})
    reference = data_dir / "isic_reference.csv"
    root = data_dir / "isic9"
    dataset = read_dataset(root, reference=reference)
    embedder = request.getfixturevalue("embedder") if embedding else None
    found = run_audit(dataset, reference=reference, embedder=embedder, console=quiet())
    wanted = {
        "images": 2359,
        "unreadable": 0,
        "exact_duplicate_groups": 159,
        "contradicting_images": 155,
        "contradictions_by_pair": {"AK/NV": 77, "MEL/SK": 78},
        "test_images_under_another_label_in_train": 18,
        "test_images_with_lesion_in_train_other_image": 33,
        "test_images_with_lesion_in_train_any_image": 39,
        "test_images_leaked_any": 44,
    }
    assert {name: found.counts[name] for name in wanted} == wanted
    assert found.counts["labels_against_reference"]["by_pair"] == {"NV->AK": 76, "SK->MEL": 26}
    assert found.ceiling == pytest.approx(100 / 118, abs=1e-6)
    assert found.shortcuts is not None and found.shortcuts.probes[0].balanced_accuracy > 0.35
    repair = found.repair()
    assert "SK" in repair.dropped
    write_repair(repair, tmp_path / "repaired.csv", root)
    again = run_audit(read_dataset(tmp_path / "repaired.csv", images=root), reference=reference, console=quiet())
    assert [f.kind for f in again.findings if f.severity == "error"] == []
    assert again.counts["test_images_leaked_any"] == 0


def test_the_advice_follows_from_all_that_was_found(tmp_path: Path) -> None:
    """Pictures that show nothing, classes that a training refuses, labels in doubt: none of them is "no problems"."""
    for number in range(12):
        for code in ("MEL", "NV"):
            pictures.save(tmp_path / "black" / code / f"{number}.png", np.full((64, 64, 3), number, np.uint8))
    black = run_audit(read_dataset(tmp_path / "black"), console=quiet()).verdict()[2]
    assert "Do not train on this data set" in black
    for code, count in (("MEL", 5), ("NV", 3)):
        for number in range(count):
            pictures.save(tmp_path / "few" / code / f"{number}.png", pictures.lesion(number + 10 * count))
    few = run_audit(read_dataset(tmp_path / "few"), console=quiet()).verdict()[2]
    assert few == "Training will refuse this data set: too few lesions of NV; each class needs 4."
