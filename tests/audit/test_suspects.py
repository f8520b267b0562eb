"""Label suspects: labels made wrong come first, whole groups stay in one fold, and little data is no error."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dermlens.audit.labels import label_suspects, out_of_fold, suspect_findings, suspects_by_pair
from dermlens.data.records import Record

CLASSES = ("BCC", "MEL", "NV")


def a_set(n: int = 240, wrong: int = 12) -> tuple[list[Record], np.ndarray, list[str], set[int]]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, n)
    vectors = (np.eye(3)[truth] @ rng.normal(0, 1, (3, 20)) * 2 + rng.normal(0, 0.6, (n, 20))).astype(np.float16)
    flipped = set(rng.choice(n, wrong, replace=False).tolist())
    labels = [(t + 1) % 3 if i in flipped else t for i, t in enumerate(truth)]
    records = [Record(Path(f"{i}.jpg"), f"{i}.jpg", CLASSES[label]) for i, label in enumerate(labels)]
    return records, vectors, [str(i) for i in range(n)], flipped


def test_wrong_labels_come_first() -> None:
    records, vectors, keys, flipped = a_set()
    found = label_suspects(records, vectors, keys, range(len(records)))
    assert len({s.image for s in found[:12]} & flipped) >= 8  # chance is one in twenty
    assert [s.score for s in found] == sorted(s.score for s in found)
    assert all(s.suggested != records[s.image].diagnosis for s in found)
    first = suspect_findings(records, found)[0]
    record = records[found[0].image]
    assert first.images == (record.image,) and first.labels == (record.diagnosis,)
    assert first.suggested == (found[0].suggested,) and found[0].suggested in first.evidence
    assert sum(suspects_by_pair(records, found).values()) == len(found)


def test_images_without_an_embedding_and_tiny_classes_are_passed_over() -> None:
    records, vectors, keys, flipped = a_set()
    gone = min(flipped)
    keys[gone] = ""
    records.append(Record(Path("x"), "x", "VASC"))
    more = np.vstack([vectors, vectors[:1]])
    found = label_suspects(records, more, [*keys, "x"], range(len(records)))
    assert not {gone, len(records) - 1} & {s.image for s in found}
    assert "VASC" not in {s.suggested for s in found}


def test_one_class_or_no_image_has_no_suspects() -> None:
    records, vectors, keys, _ = a_set()
    same = [Record(r.path, r.image, "NV") for r in records]
    assert label_suspects(same, vectors, keys, range(len(same))) == []
    assert label_suspects([], vectors[:0], [], []) == []


def test_a_group_is_never_in_fit_and_fold() -> None:
    """What only its own group could tell stays unknown: noise vectors, each group of four with a label of its own."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 4)
    labels = np.repeat(rng.integers(0, 2, 60), 4)
    vectors = np.repeat(rng.normal(0, 1, (60, 400)), 4, axis=0).astype(np.float16)
    told = out_of_fold(vectors, labels, groups, 2, seed=0).argmax(axis=1)
    assert (told == labels).mean() < 0.7
    leaky = out_of_fold(vectors, labels, np.arange(240), 2, seed=0).argmax(axis=1)
    assert (leaky == labels).mean() > 0.8
