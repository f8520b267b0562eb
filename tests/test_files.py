"""Files and folders are replaced whole or not at all; the cache keeps numbers by key and is never a reason to fail."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dermlens.files import (
    Cache,
    atomic_file,
    atomic_folder,
    cache_folder,
    replace_folder,
    sha256_of_file,
    write_text,
)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "table.csv"
    with atomic_file(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".csv" and not path.exists()
        temporary.write_text("one")
    with (
        pytest.raises(UnicodeEncodeError),
        atomic_file(path) as temporary,
        temporary.open("w", encoding="ascii") as file,
    ):
        file.write("half of the sec" + "\u00f6nd")
    assert path.read_text() == "one" and os.listdir(path.parent) == ["table.csv"]


def test_an_equal_text_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_text(path, "same")
    os.utime(path, (1, 1))
    write_text(path, "same")
    assert path.stat().st_mtime == 1
    write_text(path, "other")
    assert path.read_text() == "other" and path.stat().st_mtime > 1


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "bundle") as folder:
            (folder / "graph").write_text(content)
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "bundle") as folder:
        (folder / "graph").replace(folder / "another")
    assert (tmp_path / "bundle" / "graph").read_text() == "two" and os.listdir(tmp_path) == ["bundle"]


def test_a_folder_comes_back_when_its_successor_cannot_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_text("earlier")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "never made", tmp_path / "model")
    assert (tmp_path / "model" / "saved_model.pb").read_text() == "earlier" and os.listdir(tmp_path) == ["model"]


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DERMLENS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("DERMLENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder().name == "dermlens"


def test_values_are_kept_by_area_and_key(tmp_path: Path) -> None:
    facts, vectors = Cache("facts-1", tmp_path), Cache("vectors-1", tmp_path)
    facts.save({f"key {n}": b"%d" % n for n in range(1200)})
    vectors.save({"key 7": b"a vector"})
    facts.save({"key 8": b"new"})
    found = facts.load([f"key {n}" for n in range(1500)])
    assert len(found) == 1200 and found["key 7"] == b"7" and found["key 8"] == b"new"
    assert vectors.load(["key 7", "key 8"]) == {"key 7": b"a vector"}
    assert Cache("facts-2", tmp_path).load(["key 7"]) == {}


def test_its_size_is_bounded_and_what_is_used_stays(tmp_path: Path) -> None:
    cache = Cache("facts-1", tmp_path, max_bytes=1000)
    cache.save({"old": bytes(400), "used": bytes(400)})
    cache.load(["used"])
    cache.save({"new": bytes(400)})
    assert set(cache.load(["old", "used", "new"])) == {"used", "new"}


@pytest.mark.parametrize("damage", [b"no database at all, but longer than its head must be" * 20, b""])
def test_a_damaged_cache_is_as_good_as_none_and_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    cache = Cache("facts-1", tmp_path)
    cache.save({"key": b"value"})
    cache.path.write_bytes(damage)
    assert cache.load(["key"]) == {}
    cache.save({"key": b"value"})
    assert cache.load(["key"]) == {"key": b"value"}


def test_a_cache_that_cannot_be_written_keeps_nothing_and_does_not_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache("facts-1", tmp_path / "file")
    cache.save({"key": b"value"})
    assert cache.load(["key"]) == {}


def test_several_may_use_it_at_once(tmp_path: Path) -> None:
    def work(n: int) -> int:
        cache = Cache("facts-1", tmp_path)
        cache.save({f"{n}-{row}": b"x" for row in range(50)})
        return len(cache.load([f"{n}-{row}" for row in range(50)]))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(16))) == [50] * 16
