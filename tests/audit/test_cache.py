"""Facts kept between audits: the same facts come back, a changed file is read anew, a bad cache is none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import pictures
from dermlens.audit import facts as facts_module
from dermlens.audit.cache import load_facts, save_facts
from dermlens.audit.facts import ImageFacts, read_facts
from dermlens.data.records import Record


def a_set(folder: Path) -> list[Record]:
    for seed in range(3):
        pictures.save(folder / f"{seed}.jpg", pictures.lesion(seed))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return [Record(path, path.name, "NV") for path in sorted(folder.glob("*.jpg"))]


def same(one: ImageFacts, other: ImageFacts) -> bool:
    plain = ("sha256", "error", "format", "width_px", "height_px", "size_bytes", "quantisation", "look")
    arrays = np.array_equal(one.thumb, other.thumb) and np.array_equal(one.codes, other.codes)
    return arrays and all(getattr(one, name) == getattr(other, name) for name in plain)


def test_facts_come_back_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, path = a_set(tmp_path), tmp_path / "cache" / "facts.npz"
    first = read_facts(records)
    save_facts(path, first)
    assert [p.name for p in path.parent.iterdir()] == ["facts.npz"]
    decoded: list[bytes] = []
    decode = facts_module.decode
    monkeypatch.setattr(facts_module, "decode", lambda data, **how: decoded.append(data) or decode(data, **how))
    again = read_facts(records, known=load_facts(path))
    assert all(same(*pair) for pair in zip(first, again, strict=True)) and decoded == []
    pictures.save(records[0].path, pictures.lesion(7))
    changed = read_facts(records, known=load_facts(path))
    assert len(decoded) == 1 and changed[0].sha256 != first[0].sha256


@pytest.mark.parametrize("content", [b"", b"PK no zip", b"\x93NUMPY"])
def test_a_bad_cache_is_no_cache(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "facts.npz").write_bytes(content)
    assert load_facts(tmp_path / "facts.npz") == {} == load_facts(tmp_path / "gone.npz")


def test_a_cache_cut_off_or_of_another_version_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.npz"
    save_facts(path, read_facts(a_set(tmp_path)))
    assert len(load_facts(path)) == 3
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert load_facts(path) == {}
    path.write_bytes(whole)
    monkeypatch.setattr("dermlens.audit.cache.VERSION", "0")
    assert load_facts(path) == {}


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    save_facts(tmp_path / "file" / "facts.npz", read_facts(a_set(tmp_path)))
    save_facts(tmp_path / "empty.npz", [])
    assert load_facts(tmp_path / "empty.npz") == {}
    assert os.listdir(tmp_path).count("file") == 1
