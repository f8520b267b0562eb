"""Roles: groups stay whole, classes stand everywhere, the order of the records makes no difference."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from dermlens.data.records import Record
from dermlens.errors import DataError, UsageError
from dermlens.training.split import ROLES, assign_folds, assign_roles, find_crossing_groups, role_table

FRACTIONS = {"train": 0.7, "select": 0.1, "calibrate": 0.1, "test": 0.1}


def record(name: str, diagnosis: str, split: str | None = None, **facts: str) -> Record:
    return Record(Path(name), name, diagnosis, split=split, **facts)  # type: ignore[arg-type]


def hashed(records: list[Record]) -> list[str | None]:
    return [f"hash-{r.image}" for r in records]


def assign(records: list[Record], seed: int = 0, **fractions: float) -> list[str]:
    return assign_roles(records, hashed(records), fractions=fractions or FRACTIONS, seed=seed)


def lesions(diagnosis: str, count: int, images: int = 2, split: str | None = None) -> list[Record]:
    """`count` lesions of `images` images each."""
    tag = split or "free"
    return [
        record(f"{diagnosis}-{tag}-{i}-{k}", diagnosis, split, lesion_id=f"L-{diagnosis}-{tag}-{i}")
        for i in range(count)
        for k in range(images)
    ]


def roles_by(records: list[Record], roles: list[str], fact: str) -> dict[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for r, role in zip(records, roles, strict=True):
        found[getattr(r, fact)].add(role)
    return found


def test_stratified_and_grouped() -> None:
    records = lesions("NV", 200) + lesions("MEL", 50, images=3) + lesions("eczema", 5)
    roles = assign(records)
    assert all(len(found) == 1 for found in roles_by(records, roles, "lesion_id").values())
    assert all(found == set(ROLES) for found in roles_by(records, roles, "diagnosis").values())
    table = role_table(records, hashed(records), roles)
    assert table["NV"] == {"train": (280, 140), "select": (40, 20), "calibrate": (40, 20), "test": (40, 20)}
    assert table["MEL"] == {"train": (105, 35), "select": (15, 5), "calibrate": (15, 5), "test": (15, 5)}
    assert table["eczema"] == {"train": (4, 2), "select": (2, 1), "calibrate": (2, 1), "test": (2, 1)}
    assert find_crossing_groups(records, hashed(records), roles) == []


@pytest.mark.parametrize("seed", range(5))
def test_order_of_records_makes_no_difference_but_the_seed_does(seed: int) -> None:
    records = lesions("NV", 30) + lesions("MEL", 12)
    roles = assign(records, seed)
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    assert assign([records[i] for i in order], seed) == [roles[i] for i in order]
    assert assign(records, seed + 100) != roles


def test_groups_hold_through_patient_hash_and_isic_id() -> None:
    ties: list[dict[str, str]] = [{"lesion_id": "L"}, {"patient_id": "P"}, {"isic_id": "ISIC_0000001"}, {}]
    for seed in range(10):
        for tie in ties:
            records = [*lesions("NV", 12, images=1), record("x", "NV", **tie), record("y", "NV", **tie)]
            hashes = hashed(records)
            if not tie:
                hashes[-1] = hashes[-2]
            roles = assign_roles(records, hashes, fractions=FRACTIONS, seed=seed)
            assert roles[-1] == roles[-2]


def test_unreadable_images_are_groups_of_their_own() -> None:
    records = lesions("NV", 8, images=1) + [record(str(i), "NV") for i in range(20)]
    roles = assign_roles(records, [None] * len(records), fractions=FRACTIONS, seed=0)
    assert set(roles[8:]) > {"train"}


def test_select_and_calibrate_are_carved_out_of_train() -> None:
    records = lesions("NV", 40, split="train") + lesions("MEL", 20, split="train") + lesions("NV", 9, split="test")
    roles = assign(records)
    assert all((r.split == "test") == (role == "test") for r, role in zip(records, roles, strict=True))
    table = role_table(records, hashed(records), roles)
    assert table["NV"] == {"train": (62, 31), "select": (10, 5), "calibrate": (8, 4), "test": (18, 9)}
    assert {role: n for role, (_, n) in table["MEL"].items()} == {"train": 16, "select": 2, "calibrate": 2}


def test_a_given_select_is_kept_and_calibrate_carved() -> None:
    records = lesions("NV", 40, split="train") + lesions("NV", 5, split="select") + lesions("NV", 5, split="test")
    roles = assign(records)
    counts = Counter(zip((r.split for r in records), roles, strict=True))
    assert counts[("select", "select")] == counts[("test", "test")] == 10
    assert counts[("train", "calibrate")] == 10
    assert counts[("train", "train")] == 70
    assert ("train", "select") not in counts


def test_a_complete_split_is_kept() -> None:
    records = [r for role in ROLES for r in lesions("NV", 3, split=role)]
    assert assign(records) == [r.split for r in records]


def test_records_without_split_join_their_group_or_fill_up() -> None:
    held = lesions("NV", 10, split="test")
    friend = record("friend", "NV", lesion_id=held[0].lesion_id or "")
    records = [*held, friend, *lesions("NV", 90)]
    roles = assign(records)
    assert roles[: len(held) + 1] == ["test"] * (len(held) + 1)
    assert {role: n for role, (_, n) in role_table(records, hashed(records), roles)["NV"].items()} == {
        "train": 70,
        "select": 10,
        "calibrate": 10,
        "test": 10,
    }


def test_more_given_test_lesions_than_wanted_shorten_all_others_alike() -> None:
    records = lesions("NV", 55, split="test") + lesions("NV", 45)
    counts = {role: n for role, (_, n) in role_table(records, hashed(records), assign(records))["NV"].items()}
    assert counts == {"train": 35, "select": 5, "calibrate": 5, "test": 55}


def test_groups_of_two_classes_still_leave_both_everywhere() -> None:
    """As in ISIC-9: nearly every seborrheic keratosis stands under melanoma as well."""
    records, hashes = [], []
    for i in range(12):
        for diagnosis in ("SK", "MEL"):
            records.append(record(f"{diagnosis}{i}", diagnosis))
            hashes.append(f"shared{i}")
    for seed in range(10):
        roles = assign_roles(records, hashes, fractions=FRACTIONS, seed=seed)
        assert all(found == set(ROLES) for found in roles_by(records, roles, "diagnosis").values())


def test_too_small_class_is_an_error_with_the_remedy() -> None:
    records = lesions("NV", 20) + lesions("DF", 3, images=9) + [record("one", "eczema")]
    with pytest.raises(DataError, match=r"DF has 3; eczema has 1. Each class needs at least 4") as caught:
        assign(records)
    assert caught.value.code == "class_too_small"
    assert "remove its folder" in caught.value.remedy
    assert set(assign(lesions("NV", 20) + lesions("DF", 3), train=0.6, select=0.2, test=0.2)) == {
        "train",
        "select",
        "test",
    }


def test_class_that_stands_only_in_test_is_an_error() -> None:
    records = lesions("NV", 20, split="train") + lesions("MEL", 5, split="test")
    with pytest.raises(DataError, match="no training images: MEL") as caught:
        assign(records)
    assert caught.value.code == "class_not_in_train"


@pytest.mark.parametrize(
    "fractions",
    [
        {"train": 0.5},
        {"train": 1.2, "test": -0.2},
        {"test": 1.0},
        {"train": 0.5, "tset": 0.5},
        {"train": float("nan")},
    ],
)
def test_fractions_must_make_sense(fractions: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="fractions"):
        assign(lesions("NV", 8), 0, **fractions)


def test_every_share_is_near_its_fraction_and_complete() -> None:
    for count in range(4, 60):
        records = lesions("NV", count, images=1)
        counts = Counter(assign(records))
        assert sum(counts.values()) == count
        for role, share in FRACTIONS.items():
            assert counts[role] >= 1
            assert abs(counts[role] - share * count) < (1 if count >= 10 else 3)


def test_crossing_groups_are_found() -> None:
    records = [record("a", "NV", lesion_id="L"), record("b", "NV", lesion_id="L"), record("c", "NV")]
    assert find_crossing_groups(records, hashed(records), ["train", "test", "test"]) == [(0, 1)]
    assert find_crossing_groups(records, hashed(records), ["train", None, "test"]) == []


def test_split_needs_no_keras() -> None:
    code = "import sys, dermlens.training.split; sys.exit(bool({'keras', 'tensorflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=600).returncode == 0


def test_folds_are_stratified_and_never_cut_through_a_lesion() -> None:
    records = lesions("NV", 60) + lesions("DF", 6, split="test") + lesions("MEL", 13, images=3)
    folds = assign_folds(records, hashed(records), folds=5, seed=0)
    assert all(len(found) == 1 for found in roles_by(records, [str(f) for f in folds], "lesion_id").values())
    for code, least in (("NV", 12), ("MEL", 2), ("DF", 1)):
        counts = Counter(fold for r, fold in zip(records, folds, strict=True) if r.diagnosis == code)
        per_lesion = 3 if code == "MEL" else 2
        assert set(counts) == set(range(5)) and min(counts.values()) >= least * per_lesion
    assert assign_folds(records, hashed(records), folds=5, seed=1) != folds
    with pytest.raises(DataError, match="DF has 6"):
        assign_folds(records, hashed(records), folds=7, seed=0)
    with pytest.raises(UsageError, match="at least 2"):
        assign_folds(records, hashed(records), folds=1, seed=0)
