"""Collections become one: the sharpest copy of a picture, one lesion id for all pictures of a lesion, and its label."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest
from rich.console import Console

import pictures
from dermlens.audit.duplicates import near_duplicates
from dermlens.audit.embed import Embedder
from dermlens.audit.facts import ImageFacts, read_facts
from dermlens.data.records import Record
from dermlens.data.tables import read_table
from dermlens.diagnoses import EIGHT, to_eight
from scripts.default_model.joined import (
    join,
    name_of,
    one_copy,
    read_joined,
    read_pairs,
    search,
    write_pairs,
)
from scripts.default_model.sources import origin_of

QUIET = Console(file=io.StringIO(), width=200)


def record(image: str, diagnosis: str, lesion_id: str | None = None, **known: str) -> Record:
    isic_id = Path(image).stem if Path(image).stem.startswith("ISIC_") else None
    return Record(Path(image), image, diagnosis, lesion_id, isic_id=isic_id, **known)  # type: ignore[arg-type]


def fact(number: int, side_px: int = 100) -> ImageFacts:
    return ImageFacts(f"{number:064x}", width_px=side_px, height_px=side_px, size_bytes=side_px)


def facts_of(*sides_px: int) -> list[ImageFacts]:
    return [fact(number, side) for number, side in enumerate(sides_px)]


def test_the_sharpest_copy_is_kept_with_what_the_others_know() -> None:
    records = [
        record("ham10000/a/ISIC_0024307.jpg", "AKIEC", "HAM_1", sex="male", dx_type="histo"),
        record("isic9/Train/squamous cell carcinoma/ISIC_0024307.jpg", "SCC"),
        record("isic9/Train/nevus/ISIC_0000001.jpg", "NV"),
        record("msk/images/ISIC_0000001.webp", "NV"),
    ]
    kept, facts, notes = one_copy(records, facts_of(150, 180, 180, 300), {})
    assert [r.image for r in kept] == [records[1].image, records[3].image]
    assert (kept[0].diagnosis, kept[0].lesion_id, kept[0].sex, kept[0].dx_type) == ("AKIEC", "HAM_1", "male", "histo")
    assert [f.width_px for f in facts] == [180, 300]
    assert notes == ["2 more copies of the same pictures are left out."]


def test_the_label_is_the_collections_then_the_references_then_that_of_isic9() -> None:
    records = [
        record("isic9/Train/nevus/ISIC_0024308.jpg", "NV"),
        record("ham10000/a/ISIC_0024308.jpg", "AKIEC"),
        record("isic9/Train/seborrheic keratosis/ISIC_0000002.jpg", "SK"),
        record("isic9/Train/melanoma/ISIC_0000003.jpg", "MEL"),
        record("isic9/Train/nevus/ISIC_0000004.jpg", "NV"),
        record("isic9/Train/melanoma/ISIC_0000004(1).jpg", "MEL"),
        record("isic9/Test/nevus/ISIC_0000005.jpg", "NV"),
    ]
    facts = facts_of(*[100] * 7)
    facts[5] = facts[4]  # the same file under two labels
    facts[6] = ImageFacts(None, "broken")
    kept, _, notes = one_copy(records, facts, {"ISIC_0000002": "MEL"})
    assert [r.diagnosis for r in kept] == ["AKIEC", "MEL", "MEL"]
    assert notes == [
        "1 more copies of the same pictures are left out.",
        "1 pictures have more than one diagnosis and are left out: 1 MEL/NV.",
        "1 unreadable files are left out.",
    ]


def test_lesions_that_look_alike_get_the_first_collections_id() -> None:
    records = [
        record("milk10k/images/ISIC_8000001.webp", "NV", "IL_1", domain="dermoscopic"),
        record("milk10k/images/ISIC_8000002.webp", "NV", "IL_1", domain="close-up"),
        record("ham10000/a/ISIC_0024310.jpg", "NV", "HAM_1"),
        record("ham10000/a/ISIC_0024311.jpg", "NV", "HAM_1"),
        record("isic9/Train/nevus/ISIC_0000007.jpg", "NV"),
        record("isic9/Train/nevus/ISIC_0000008.jpg", "NV"),
        record("msk/images/ISIC_0000009.webp", "NV"),
        record("pad/images/PAT_1_2_3.webp", "NV", "PAT_1_2"),
    ]
    pairs = [("ISIC_0024310", "ISIC_8000001"), ("ISIC_0000007", "ISIC_0000008"), ("ISIC_0000007", "not here")]
    joined = join(records, facts_of(300, 360, 224, 150, 180, 90, 300, 400), pairs)
    assert {name_of(r): r.lesion_id for r in joined.records} == {
        "ISIC_8000001": "HAM_1",  # sharper than ISIC_0024310, which is the same photograph
        "ISIC_8000002": "HAM_1",
        "ISIC_0024311": "HAM_1",
        "ISIC_0000007": "ISIC_0000007",
        "ISIC_0000009": None,
        "PAT_1_2_3": "PAT_1_2",
    }
    assert joined.hashes[0] == fact(0).sha256
    assert joined.isic_ids_of_lesion["HAM_1"] == ["ISIC_0024310", "ISIC_0024311", "ISIC_8000001", "ISIC_8000002"]
    assert joined.origins_of_lesion["HAM_1"] == ["HAM10000", "MILK10k"]
    assert joined.notes == (
        "1 lesions are in more than one collection, found by look-alikes, and are joined: 1 of HAM10000 and MILK10k.",
        "1 lesions have two ids in one, found by look-alikes, and are joined: 1 of MSK.",
        "2 pictures are less sharp copies of another and are left out.",
    )


def test_joined_lesions_of_two_diagnoses_are_left_out_and_names_of_one_are_not() -> None:
    records = [
        record("ham10000/a/ISIC_0024310.jpg", "NV", "HAM_1"),
        record("milk10k/images/ISIC_8000001.webp", "MEL", "IL_1"),
        record("ham10000/a/ISIC_0024311.jpg", "AKIEC", "HAM_2"),
        record("bcn84/images/ISIC_0053879.jpg", "SCC", "BCN_2"),
    ]
    pairs = [("ISIC_0024310", "ISIC_8000001"), ("ISIC_0024311", "ISIC_0053879")]
    joined = join(records, facts_of(100, 100, 100, 84), pairs)
    assert [(r.lesion_id, r.diagnosis) for r in joined.records] == [("HAM_2", "AKIEC")]
    assert joined.notes[-1] == "1 joined lesions have two diagnoses and are left out: 1 MEL/NV."


def test_lesions_of_examples_are_reserved_under_every_name() -> None:
    records = [
        record("ham10000/a/ISIC_0024310.jpg", "NV", "HAM_1"),
        record("milk10k/images/ISIC_8000001.webp", "NV", "IL_1"),
        record("milk10k/images/ISIC_8000002.webp", "NV", "IL_1"),
        record("pad/images/PAT_1_2_3.webp", "NV", "PAT_1_2"),
        record("pad/images/PAT_1_2_4.webp", "NV", "PAT_1_2"),
        record("pad/images/PAT_1_3_5.webp", "NV", "PAT_1_3"),
    ]
    pairs = [("ISIC_0024310", "ISIC_8000001")]
    joined = join(records, facts_of(100, 90, 90, 80, 80, 80), pairs, {"IL_1", "PAT_1_2_3"})
    assert {name_of(r): r.split for r in joined.records} == {
        "ISIC_0024310": "test",
        "ISIC_8000002": "test",
        "PAT_1_2_3": "test",
        "PAT_1_2_4": "test",
        "PAT_1_3_5": None,
    }


def tiny_embedder(folder: Path) -> Embedder:
    """Return a network that shrinks an image to 7 x 7 colours."""
    image = ops.parameter([-1, 224, 224, 3], np.uint8)
    pooled = ops.avg_pool(
        ops.transpose(ops.convert(image, "f32"), np.array([0, 3, 1, 2])),
        strides=[32, 32],
        pads_begin=[0, 0],
        pads_end=[0, 0],
        kernel_shape=[32, 32],
        exclude_pad=False,
    )
    flat = ops.reshape(pooled, np.array([-1, 147]), special_zero=False)
    centred = ops.subtract(flat, ops.reduce_mean(flat, np.array([1]), keep_dims=True))
    ov.save_model(ov.Model([centred], [image]), folder / "graph.xml", compress_to_fp16=False)
    return Embedder(folder / "graph.xml", "tiny")


def test_the_search_finds_look_alikes_within_a_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DERMLENS_CACHE", str(tmp_path / "cache"))
    for seed in range(6):
        pictures.save(tmp_path / f"ham10000/a/ISIC_002431{seed}.jpg", pictures.detailed(seed))
    small = cv2.resize(pictures.detailed(0), (120, 120), interpolation=cv2.INTER_AREA)
    cut = np.ascontiguousarray(pictures.detailed(1)[14:-14, 14:-14])
    pictures.save(tmp_path / "milk10k/ISIC_8000000.jpg", small, 80)
    pictures.save(tmp_path / "milk10k/ISIC_8000001.jpg", cut, 90)
    pictures.save(tmp_path / "milk10k/ISIC_8000002.jpg", pictures.detailed(2), 60)
    records = []
    for path in sorted(tmp_path.rglob("ISIC_*.jpg")):
        name = path.relative_to(tmp_path).as_posix()
        domain = "close-up" if path.stem.endswith("8000002") else "dermoscopic"
        lesion = f"{'IL' if path.stem.startswith('ISIC_8') else 'HAM'}_{path.stem[-1]}"
        records.append(replace(record(name, "NV", lesion, domain=domain), path=path))
    found = search(records, read_facts(records), tiny_embedder(tmp_path), QUIET)
    assert found == [("ISIC_0024310", "ISIC_8000000"), ("ISIC_0024311", "ISIC_8000001")]
    write_pairs(found, tmp_path / "pairs.csv")
    assert read_pairs(tmp_path / "pairs.csv") == found
    known = [replace(r, lesion_id="L") if r.lesion_id in ("HAM_0", "IL_0") else r for r in records]
    assert search(known, read_facts(known), tiny_embedder(tmp_path), QUIET) == found[1:], "known to be one lesion"


def spot(seed: int) -> np.ndarray:
    """Return a dark round spot on skin with grain that no other picture has: alike by hash, not in what is fine."""
    image = np.full((240, 240, 3), (210, 180, 160), np.uint8)
    cv2.circle(image, (120, 120), 70, (70, 45, 40), -1, cv2.LINE_AA)
    grain = np.random.default_rng(seed).normal(0, 12, image.shape)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 3) + grain, 0, 255).astype(np.uint8)


def test_two_round_spots_and_lesions_told_apart_by_their_collection_are_no_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DERMLENS_CACHE", str(tmp_path / "cache"))
    records = []
    for number, (folder, image) in enumerate(
        [
            ("ham10000", spot(0)),
            ("milk10k", spot(1)),
            ("ham10000", pictures.detailed(1)),
            ("ham10000", np.ascontiguousarray(pictures.detailed(1)[14:-14, 14:-14])),
        ]
    ):
        path = pictures.save(tmp_path / folder / f"ISIC_002431{number}.png", image)
        own = record(f"{folder}/{path.name}", "NV", f"{folder} {number}", domain="dermoscopic")
        records.append(replace(own, path=path))
    facts = read_facts(records)
    assert [(p.first, p.second) for p in near_duplicates(records, facts)] == [(0, 1)]
    assert search(records, facts, tiny_embedder(tmp_path), QUIET) == []
    unnamed = [replace(r, lesion_id=None) if r.image.endswith("3.png") else r for r in records]
    assert search(unnamed, facts, tiny_embedder(tmp_path), QUIET) == [("ISIC_0024312", "ISIC_0024313")]


@pytest.mark.data
def test_the_collections_are_joined_and_known_shared_lesions_found_again(data_dir: Path) -> None:
    joined = read_joined(data_dir, QUIET)
    names = {name_of(r) for r in joined.records}
    assert len(names) == len(joined.records), "one copy of each picture"
    of_lesion = defaultdict(set)
    for r in joined.records:
        of_lesion[r.lesion_id or name_of(r)].add(to_eight(r.diagnosis))
    assert all(len(codes - {None}) <= 1 for codes in of_lesion.values())
    assert set().union(*of_lesion.values()) == {*EIGHT, None}
    lesion_of = {isic_id: lesion for lesion, ids in joined.isic_ids_of_lesion.items() for isic_id in ids}
    rows = read_table(data_dir / "milk10k" / "same_lesion.csv").rows
    searched = {frozenset(pair) for pair in read_pairs()}
    again = {r["milk10k"] for r in rows if frozenset((r["milk10k"], r["ham10000"])) in searched}
    assert len(again) >= 500, "of 540 by the search of its own; the file is read beside it"
    found = {lesion_of.get(r["milk10k"]) for r in rows if lesion_of.get(r["milk10k"]) == lesion_of.get(r["ham10000"])}
    assert len(found - {None}) >= 535
    assert {origin_of(r) for r in joined.records if r.split == "test"} >= {"HAM10000", "MSK"}
