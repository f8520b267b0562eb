"""Results kept between audits: computed once for one content, again for any other, numbers only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pictures
from dermlens.audit import facts as facts_module
from dermlens.audit.cache import Store, contents_key, for_each_content
from dermlens.audit.facts import ImageFacts, facts_of, read_facts
from dermlens.data.records import Record
from dermlens.files import cache_sizes


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DERMLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_result_is_computed_once_for_a_key() -> None:
    store: Store[list[int]] = Store("numbers", list[int])
    calls: list[str] = []

    def ask(key: str, of: Store[list[int]] = store) -> list[int]:
        return of.get(key, lambda: calls.append(key) or [1, 2])  # type: ignore[func-returns-value]

    assert [ask(key) for key in ("a", "a", "b", "a")] == [[1, 2]] * 4 and calls == ["a", "b"]
    assert ask("a", Store("numbers", list[int], enabled=False)) == [1, 2] and len(calls) == 3
    assert Store("numbers", dict[str, str]).load(["a"]) == {}  # of another type: as good as none
    nothing: Store[int | None] = Store("maybe", int | None)
    assert nothing.get("a", lambda: None) is None and nothing.load(["a"]) == {"a": None}


def test_a_folder_that_cannot_be_written_costs_nothing_else(folder: Path) -> None:
    folder.write_text("")
    assert Store("numbers", int).get("a", lambda: 5) == 5


def test_each_content_is_computed_once_and_failures_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermlens.audit.cache._CHUNK", 2)
    asked: list[list[int]] = []
    steps: list[int] = []

    def compute(part: list[int]) -> Iterator[int | None]:
        asked.append(part)
        yield from (None if place == 4 else 10 * place for place in part)

    keys, store = ["x", "x", "", "y", "z", "w"], Store[int]("numbers", int)
    assert for_each_content(keys, store, compute, steps.append) == {"x": 0, "y": 30, "w": 50}
    assert asked == [[0, 3], [4, 5]] and sum(steps) == 4
    assert for_each_content(keys, store, compute) == {"x": 0, "y": 30, "w": 50} and asked[2:] == [[4]]


def a_set(folder: Path) -> list[Record]:
    for seed in range(3):
        pictures.save(folder / f"{seed}.jpg", pictures.lesion(seed))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return [Record(path, path.name, "NV") for path in sorted(folder.glob("*.jpg"))]


def test_facts_come_back_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, decoded = a_set(tmp_path / "set"), list[bytes]()
    first = read_facts(records, cache=True)
    assert first == [facts_of(record) for record in records]
    decode = facts_module.decode
    monkeypatch.setattr(facts_module, "decode", lambda data, **how: decoded.append(data) or decode(data, **how))
    assert read_facts(records, cache=True) == first and decoded == []
    pictures.save(records[0].path, pictures.lesion(7))
    changed = read_facts(records, cache=True)
    assert len(decoded) == 1 and changed[0].sha256 != first[0].sha256 and changed[1:] == first[1:]
    monkeypatch.setattr(facts_module, "VERSION", "0")
    assert read_facts(records, cache=True) == changed and len(decoded) == 4


def test_no_kept_value_is_large_enough_to_be_a_picture(tmp_path: Path, folder: Path) -> None:
    read_facts(a_set(tmp_path / "set"), cache=True)
    with sqlite3.connect(folder / "cache.sqlite") as store:
        sizes = [size for (size,) in store.execute("SELECT length(value) FROM kept")]
    assert len(sizes) == 3 and max(sizes) < 500  # a grey thumbnail of 32 x 32 has 1,024 bytes
    ((count, size),) = cache_sizes().values()
    assert (count, size) == (3, sum(sizes))


def test_the_key_follows_all_that_matters() -> None:
    record = Record(Path("a"), "a", "NV", lesion_id="1")
    first = contents_key([record], ["1"], "x")
    assert first == contents_key([replace(record, path=Path("elsewhere"))], ["1"], "x")
    changes = ({"diagnosis": "MEL"}, {"lesion_id": "2"}, {"frame_aspect": 1.3}, {"image": "b"}, {"patient_id": "p"})
    others = {contents_key([replace(record, **change)], ["1"], "x") for change in changes}  # type: ignore[arg-type]
    others |= {contents_key([record], [None], "x"), contents_key([record], ["1"], "y")}
    assert len(others | {first}) == 8


def test_unreadable_files_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (fact,) = read_facts([Record(tmp_path / "a.jpg", "a.jpg", "NV")], cache=True)
    assert fact == ImageFacts(None, fact.error) and fact.error and cache_sizes() == {}
