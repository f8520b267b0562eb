"""Files and folders are replaced whole or not at all; the cache keeps numbers by key and is never a reason to fail."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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


def test_the_only_copy_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new folder cannot be moved in, nor the old one back: it stays where it is."""
    for name in ("new", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    move, calls = os.replace, []

    def only_once(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) > 1:
            raise OSError("no space left")
        move(source, target)

    monkeypatch.setattr(os, "replace", only_once)
    with pytest.raises(OSError, match="no space left"):
        replace_folder(tmp_path / "new", tmp_path / "model")
    assert [path.read_text() for path in tmp_path.glob(".old-*/model/content")] == ["model"]


def test_a_link_stays_a_link_and_a_mode_stays(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "real.csv").chmod(0o600)
    (tmp_path / "link.csv").symlink_to("real.csv")
    write_text(tmp_path / "link.csv", "new")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").read_text() == "new"
    assert (tmp_path / "real.csv").stat().st_mode & 0o777 == 0o600


def test_two_writers_at_once_and_a_long_name(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 240 + ".txt")
    with atomic_file(path) as one, atomic_file(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
    assert path.read_text() == "one"


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
    cache.save({"used": bytes(400)})
    cache.save({"old": bytes(400)})
    assert set(cache.load(["used"])) == {"used"}
    cache.save({"new": bytes(400)})
    assert set(cache.load(["old", "used", "new"])) == {"used", "new"}


def test_what_cannot_be_written_is_read_all_the_same(tmp_path: Path) -> None:
    cache = Cache("facts-1", tmp_path)
    cache.save({f"{n}": b"x" for n in range(1500)})
    with closing(sqlite3.connect(cache.path)) as other:
        other.execute("BEGIN IMMEDIATE")  # another process writes
        assert len(cache.load([f"{n}" for n in range(1500)])) == 1500


def test_a_cache_of_another_layout_or_with_broken_pages_is_made_anew(tmp_path: Path) -> None:
    cache = Cache("facts-1", tmp_path)
    with closing(sqlite3.connect(cache.path)) as other, other:
        other.execute("CREATE TABLE kept (one TEXT)")
    cache.load(["key"])
    cache.save({f"{n}": bytes(5000) for n in range(20)})
    assert len(cache.load(["1", "2"])) == 2
    content = bytearray(cache.path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    cache.path.write_bytes(content)
    cache.load(["1"])
    cache.save({"key": b"value"})
    cache.save({"key": b"value"})
    assert cache.load(["key"]) == {"key": b"value"}


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
