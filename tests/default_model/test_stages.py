"""The data of each stage: classes, roles by lesion, what stage 1 has seen, and an archive left out."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from rich.console import Console

from dermlens.data.records import Record
from dermlens.diagnoses import EIGHT, ISIC2019
from dermlens.errors import UsageError
from scripts.default_model.joined import Joined, read_joined
from scripts.default_model.sources import BCN, ORIGINS, origin_of
from scripts.default_model.stages import describe, left_out, stage_1, stage_2, unfamiliar

FOLDERS = {"HAM10000": "ham10000", "MSK": "msk", "MILK10k": "milk10k", "PAD-UFES-20": "pad", "BCN_20000": "bcn84"}


@pytest.fixture(scope="module")
def joined() -> Joined:
    """Twelve lesions of each class in each archive; the first of each class of MILK10k is MSK's or BCN_20000's too."""
    records, origins = [], {}
    for origin in ORIGINS:
        codes = ISIC2019 if origin == BCN else EIGHT
        for code in (*codes, "INF", "BEN_OTH") if origin == "MILK10k" else codes:
            for number in range(12):
                lesion = f"{origin} {code} {number}"
                own = [origin]
                if origin == "MILK10k" and number == 0:
                    own = [origin, "MSK"]
                elif origin == "MILK10k" and number == 1:
                    own = [origin, BCN]
                origins[lesion] = own
                for view in ("dermoscopic", "close-up") if origin == "MILK10k" else ("dermoscopic",):
                    name = f"{FOLDERS[origin]}/{lesion} {view}.jpg"
                    split = "test" if origin == "HAM10000" and number == 0 else None
                    records.append(Record(Path(name), name, code, lesion, split=split, domain=view))
    hashes = tuple(f"{i:064x}" for i in range(len(records)))
    return Joined(tuple(records), hashes, {}, origins, ("a note.",), Path("data"))


def test_stage_1_is_bcn_with_its_own_classes_and_no_roles(joined: Joined) -> None:
    dataset = stage_1(joined)
    assert {origin_of(r) for r in dataset.records} == {BCN}
    assert dataset.classes == ISIC2019 and len(dataset.records) == 96
    assert {r.split for r in dataset.records} == {None}
    assert dataset.root == Path("data")


def test_stage_2_has_eight_classes_and_one_role_for_a_lesion(joined: Joined) -> None:
    dataset = stage_2(joined)
    assert {origin_of(r) for r in dataset.records} == set(ORIGINS) - {BCN}
    assert dataset.classes == EIGHT
    roles = defaultdict(set)
    for r in dataset.records:
        roles[r.lesion_id].add(r.split)
    assert all(len(of_lesion) == 1 for of_lesion in roles.values())
    assert Counter(r.split for r in dataset.records)["train"] > len(dataset.records) / 2
    for code in EIGHT:
        assert {r.split for r in dataset.records if r.diagnosis == code} == {"train", "select", "calibrate", "test"}
    assert all(roles[f"HAM10000 {code} 0"] == {"test"} for code in EIGHT), "reserved"
    assert all(roles[f"MILK10k {code} 1"] == {"train"} for code in EIGHT), "stage 1 has seen it"
    assert dataset.notes == (
        "a note.",
        "60 pictures have no class of the eight and are left out: 24 MILK10k's INF, 24 MILK10k's BEN_OTH, "
        "12 BCN_20000's SCC.",
    )


def test_pictures_of_bcn_may_be_added_to_train(joined: Joined) -> None:
    with_it, without = stage_2(joined, bcn=True), stage_2(joined)
    added = [r for r in with_it.records if origin_of(r) == BCN]
    assert {r.split for r in added} == {"train"} and len(added) == 84
    assert {r.diagnosis for r in added} == set(EIGHT) - {"SCCKA"}
    assert [r for r in with_it.records if origin_of(r) != BCN] == list(without.records)


def test_an_archive_leaves_with_the_lesions_that_it_shares(joined: Joined) -> None:
    whole = {r.image: r.split for r in stage_2(joined).records}
    rest = stage_2(joined, without="MSK").records
    assert not [r for r in rest if origin_of(r) == "MSK" or "MSK" in joined.origins_of_lesion[str(r.lesion_id)]]
    assert len(rest) == len(whole) - 96 - 16, "its own, and both pictures of eight lesions of MILK10k"
    assert all(whole[r.image] == r.split for r in rest), "no lesion changes its role"
    scored = left_out(joined, "MILK10k").records
    assert {r.split for r in scored} == {"test"} and {r.diagnosis for r in scored} == set(EIGHT)
    assert len(scored) == 2 * 8 * 11, "what BCN_20000 shares was seen in stage 1"
    assert len(stage_1(joined, without="MILK10k").records) == 96
    with pytest.raises(UsageError, match=r"'milk'. Allowed: HAM10000, MSK, MILK10k"):
        stage_2(joined, without="milk")


def test_other_kinds_of_lesions_are_kept_apart(joined: Joined) -> None:
    dataset = unfamiliar(joined)
    assert dataset.classes == ("BEN_OTH", "INF") and len(dataset.records) == 48
    assert Counter(r.split for r in dataset.records) == {"calibrate": 24, "test": 24}


def test_pictures_are_counted_by_archive_domain_and_class(joined: Joined) -> None:
    counts = describe(stage_2(joined).records)
    assert counts["MILK10k, close-up"] == dict.fromkeys(EIGHT, 12)
    assert sorted(counts) == [
        "HAM10000, dermoscopic",
        "MILK10k, close-up",
        "MILK10k, dermoscopic",
        "MSK, dermoscopic",
        "PAD-UFES-20, dermoscopic",
    ]


@pytest.mark.data
def test_the_stages_of_the_real_collections(data_dir: Path) -> None:
    joined = read_joined(data_dir, Console(file=io.StringIO()))
    first, second = stage_1(joined), stage_2(joined)
    assert first.classes == ISIC2019 and second.classes == EIGHT
    assert not {r.lesion_id for r in first.records if r.lesion_id} & {
        r.lesion_id for r in second.records if r.split != "train"
    }
    for origin in ORIGINS[:-1]:
        rest = stage_2(joined, without=origin).records
        assert origin not in {origin_of(r) for r in rest} and len(rest) > 5000
        assert not {r.lesion_id for r in rest if r.lesion_id} & {r.lesion_id for r in left_out(joined, origin).records}
