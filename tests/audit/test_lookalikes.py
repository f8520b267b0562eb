"""Look-alikes: neighbours are found; cropped and tilted copies are paired with their originals, second views never."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import pictures
from dermlens.audit import lookalikes as module
from dermlens.audit.duplicates import NearPair, near_duplicates, near_findings, near_groups
from dermlens.audit.facts import ImageFacts, read_facts
from dermlens.audit.lookalikes import candidates, confirmed, nearest, unit
from dermlens.data.images import load_image
from dermlens.data.records import Record

SPEC = module.SPEC


def vectors_of(records: list[Record]) -> np.ndarray:
    """Return what stands in for embeddings: a colour histogram, which crops and tilts hardly change."""
    rows = []
    for record in records:
        pixels = load_image(record.path, SPEC)
        rows.append(cv2.calcHist([pixels], [0, 1, 2], None, [5, 5, 5], [0, 256] * 3).ravel())
    return np.sqrt(np.array(rows)).astype(np.float16)


@pytest.fixture(scope="module")
def a_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Record], list[ImageFacts], np.ndarray, list[str]]:
    folder = tmp_path_factory.mktemp("set")
    for seed in range(8):
        pictures.save(folder / f"{seed}.jpg", pictures.detailed(seed))
    image = pictures.detailed(0)
    pictures.save(folder / "crop of 0.jpg", np.ascontiguousarray(image[30:-30, 30:-30]), 80)
    turn = cv2.getRotationMatrix2D((120, 120), 12, 1)
    pictures.save(folder / "tilt of 1.jpg", cv2.warpAffine(pictures.detailed(1), turn, (240, 240), borderMode=4))
    records = [Record(path, path.name, "NV") for path in sorted(folder.glob("*.jpg"))]
    facts = read_facts(records)
    return records, facts, vectors_of(records), [str(fact.sha256) for fact in facts]


def lookalikes(records: list[Record], facts: list[ImageFacts], vectors: np.ndarray, keys: list[str]) -> list[NearPair]:
    return confirmed(records, candidates(records, facts, vectors, keys))


def test_copies_that_the_hash_misses_are_found(
    a_set: tuple[list[Record], list[ImageFacts], np.ndarray, list[str]],
) -> None:
    records, facts, vectors, keys = a_set
    assert near_duplicates(records, facts) == []
    pairs = lookalikes(records, facts, vectors, keys)
    names = {(records[p.first].image, records[p.second].image) for p in pairs}
    assert names == {("0.jpg", "crop of 0.jpg"), ("1.jpg", "tilt of 1.jpg")}
    hashes = [fact.sha256 for fact in facts]
    texts = [f.evidence for f in near_findings(records, near_groups(pairs, hashes), pairs, hashes)]
    assert "enlarged 1.3" in texts[0] and "tilted by 12 degrees" in texts[1] and "embedding" in texts[1]


def test_pairs_that_are_known_are_not_looked_at_again(
    a_set: tuple[list[Record], list[ImageFacts], np.ndarray, list[str]],
) -> None:
    records, facts, vectors, keys = a_set
    pairs = lookalikes(records, facts, vectors, keys)
    looked = candidates(records, facts, vectors, keys, pairs)
    assert looked and not {(p.first, p.second) for p in pairs} & set(looked)


def test_metadata_that_tells_two_photographs_apart_is_believed(
    a_set: tuple[list[Record], list[ImageFacts], np.ndarray, list[str]],
) -> None:
    records, facts, vectors, keys = a_set
    named = [replace(r, lesion_id=r.image[-5], isic_id=f"ISIC_{i:07}") for i, r in enumerate(records)]
    assert lookalikes(named, facts, vectors, keys) == []
    unnamed = [replace(r, isic_id=None) for r in named]
    assert len(lookalikes(unnamed, facts, vectors, keys)) == 2


def test_files_that_are_gone_or_unreadable_are_passed_over(
    a_set: tuple[list[Record], list[ImageFacts], np.ndarray, list[str]],
) -> None:
    records, facts, vectors, keys = a_set
    gone = [replace(r, path=Path("gone") / r.image) for r in records]
    assert lookalikes(gone, facts, vectors, keys) == []
    assert candidates(records, facts, vectors, [""] * len(keys), []) == []


def test_chunks_and_forgotten_sketches_make_no_difference(
    a_set: tuple[list[Record], list[ImageFacts], np.ndarray, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    records, facts, vectors, keys = a_set
    whole = lookalikes(records, facts, vectors, keys)
    monkeypatch.setattr(module, "_CHUNK", 3)
    monkeypatch.setattr(module, "_MAX_SKETCHES", 2)
    assert lookalikes(records, facts, vectors, keys) == whole


def some_vectors(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit((rng.normal(0, 1, (n, 24))).astype(np.float32))


def test_unit_has_length_one() -> None:
    vectors = some_vectors(500)
    assert np.allclose(np.linalg.norm(vectors.astype(float), axis=1), 1, atol=2e-3)
    assert not unit(np.zeros((3, 4), np.float16)).any()


def test_exact_is_what_comparing_all_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = some_vectors(120)
    all_pairs = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    np.fill_diagonal(all_pairs, -2)
    wanted = np.sort(all_pairs, axis=1)[:, ::-1][:, :5]
    for block in (8_000_000, 1000):
        monkeypatch.setattr(module, "_BLOCK_VALUES", block)
        places, likeness = nearest(vectors, 5)
        assert np.allclose(likeness, wanted, atol=1e-5)
        assert np.allclose(np.take_along_axis(all_pairs, places, axis=1), likeness, atol=1e-5)


def test_the_index_finds_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = some_vectors(900)
    exact, _ = nearest(vectors, 5)
    monkeypatch.setattr(module, "EXACT_UP_TO", 500)
    places, likeness = nearest(vectors, 5)
    found = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(places.tolist(), exact.tolist(), strict=True)])
    assert found > 0.95
    assert (places != np.arange(900)[:, None]).all()
    assert (np.diff(likeness, axis=1) <= 1e-3).all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_vectors(n: int) -> None:
    places, likeness = nearest(some_vectors(n) if n > 1 else np.zeros((n, 4), np.float16), 5)
    assert places.shape == likeness.shape == (n, max(0, n - 1))
