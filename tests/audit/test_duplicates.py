"""Near duplicates: every change of a picture is found again, and other pictures are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import pictures
from dermlens.audit import duplicates
from dermlens.audit.duplicates import NearPair, group_near, near_duplicates, near_findings, near_groups
from dermlens.audit.facts import read_facts
from dermlens.data.records import Record

COUNT = 40
CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "recompressed": (lambda image: image, 35),
    "smaller": (lambda image: cv2.resize(image, (80, 60), interpolation=cv2.INTER_AREA), 92),
    "larger": (lambda image: cv2.resize(image, (400, 300)), 92),
    "quarter turn": (lambda image: np.rot90(image), 92),
    "half turn": (lambda image: image[::-1, ::-1], 92),
    "mirrored": (lambda image: image[:, ::-1], 92),
    "upside down": (lambda image: image[::-1], 92),
    "brighter": (lambda image: np.clip(image * 1.1 + 8, 0, 255).astype(np.uint8), 92),
    "redder": (lambda image: np.clip(image * np.array([1.08, 0.97, 0.94]), 0, 255).astype(np.uint8), 92),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_found_and_nothing_else(change: str, tmp_path: Path) -> None:
    alter, quality = CHANGES[change]
    records = []
    for seed in range(COUNT):
        image = pictures.lesion(seed)
        for name, pixels, how in (("a", image, 92), ("b", np.ascontiguousarray(alter(image)), quality)):
            path = pictures.save(tmp_path / f"{seed:02}{name}.jpg", pixels, how)
            records.append(Record(path, path.name, "NV"))
    pairs = near_duplicates(records, read_facts(records))
    right = {(2 * seed, 2 * seed + 1) for seed in range(COUNT)}
    found = {(p.first, p.second) for p in pairs}
    assert found <= right
    assert len(found) >= COUNT - 1


def test_copies_count_once_and_uniform_pictures_never(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pictures.save(tmp_path / f"{name}.png", pictures.lesion(1))
    for value in (100, 101):
        pictures.save(tmp_path / f"grey{value}.png", np.full((60, 60, 3), value, np.uint8))
    pictures.save(tmp_path / "c.jpg", pictures.lesion(1), 60)
    (tmp_path / "d.png").write_bytes(b"")
    records = [Record(path, path.name, "NV") for path in sorted(tmp_path.iterdir())]
    facts = read_facts(records)
    pairs = near_duplicates(records, facts)
    assert [(p.first, p.second) for p in pairs] == [(0, 2)]
    groups = near_groups(pairs, [f.sha256 for f in facts])
    assert groups == [[0, 1, 2]]


def test_findings_tell_contradicting_groups_from_others() -> None:
    records = [Record(Path(n), n, code) for n, code in (("a", "NV"), ("b", "MEL"), ("c", "NV"), ("d", "NV"))]
    hashes = ["1", "2", "3", "4"]
    pairs = [NearPair(0, 1, 0, 2, 0.99), NearPair(2, 3, 1, 4, 0.985)]
    one, other = near_findings(records, near_groups(pairs, hashes), pairs, hashes)
    assert (one.kind, one.severity, one.labels) == ("near_duplicates_contradicting", "error", ("NV", "MEL"))
    assert (other.kind, other.images) == ("near_duplicates", ("c", "d"))
    assert "turned or mirrored" in other.evidence and "turned" not in one.evidence


def test_pairs_and_groups_join_through_others() -> None:
    pairs = [NearPair(0, 1, 0, 2, 0.99), NearPair(3, 4, 0, 2, 0.99)]
    assert group_near([None, "x", "x", None, "y", "z"], pairs) == [0, 0, 0, 1, 1, 2]
    assert near_duplicates([], []) == []


def test_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = []
    for seed in range(9):
        for name, quality in (("a", 90), ("b", 50)):
            path = pictures.save(tmp_path / f"{seed}{name}.jpg", pictures.lesion(seed), quality)
            records.append(Record(path, path.name, "NV"))
    facts, steps = read_facts(records), list[int]()
    whole = near_duplicates(records, facts)
    monkeypatch.setattr(duplicates, "_MAX_ROWS", 4)
    assert near_duplicates(records, facts, progress=steps.append) == whole
    assert [(p.first, p.second) for p in whole] == [(2 * i, 2 * i + 1) for i in range(9)]
    assert steps == [4, 4, 4, 4, 2]
