"""Tar shards and URLs: read as a stream, ahead but not too far, a row for whatever is wrong with them."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import fsspec
import pandas as pd
import pytest
from tenacity import wait_none

import tiny
from dermlens.batch import job as items
from dermlens.batch import storage
from dermlens.batch.job import Settings, Summary, open_job, run_job
from dermlens.batch.sources import Source, Unit, read_tar
from dermlens.errors import ImageError, StorageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "b")


def png(code: str) -> bytes:
    return bytes(cv2.imencode(".png", tiny.colour(code)[:, :, ::-1])[1])


def write_tar(path: Path, count: int, mode: str = "w") -> Path:
    """Write a shard in WebDataset's layout: NNN.png and NNN.json for each image."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for index in range(count):
            for name, data in ((f"{index:03d}.png", png(tiny.CODES[index % 3])), (f"{index:03d}.json", b"{}")):
                member = tarfile.TarInfo(f"set/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def batch(inputs: list[str], out: str | Path, model: Path, **options: Any) -> Summary:
    with open_job(inputs, out, model=model, **options) as job:
        return run_job(job)


def kinds(path: Path, max_bytes: int = 10_000) -> list[str]:
    return [data.code if isinstance(data, ImageError) else "image" for _, data, _ in read_tar(str(path), max_bytes)]


@pytest.mark.parametrize(("name", "mode"), [("s.tar", "w"), ("s.tar.gz", "w:gz"), ("s.tgz", "w:gz")])
def test_a_shard_gives_a_row_for_each_image_and_is_not_unpacked(
    name: str, mode: str, model: Path, tmp_path: Path
) -> None:
    tar = write_tar(tmp_path / name, 7, mode)
    batch([str(tar)], tmp_path / "out", model, settings=Settings(part_rows=3))
    table = pd.read_parquet(tmp_path / "out")
    assert list(table.image) == [f"{tar}/set/{index:03d}.png" for index in range(7)]
    assert list(table.diagnosis_code) == [tiny.CODES[index % 3] for index in range(7)]
    assert len(list((tmp_path / "out").glob("part-*"))) == 3


def test_what_is_wrong_with_a_shard_has_its_row(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", 5)
    data = whole.read_bytes()
    cut, open_end, junk = tmp_path / "cut.tar", tmp_path / "open.tar", tmp_path / "junk.tar"
    cut.write_bytes(data[: 512 * 3 + 100])  # in the second member
    open_end.write_bytes(data[: 512 * 12])  # between two members, without the end mark
    junk.write_bytes(data[: 512 * 8] + b"\x55" * 4096)
    squeezed = write_tar(tmp_path / "s.tar.gz", 5, "w:gz")
    squeezed.write_bytes(squeezed.read_bytes()[:-60])
    empty = write_tar(tmp_path / "empty.tar", 0)
    assert kinds(whole) == ["image"] * 5
    assert [kinds(path)[-1] for path in (cut, open_end, junk, squeezed)] == ["bad_shard"] * 4
    assert kinds(open_end)[0] == "image" and kinds(empty) == ["no_images"]
    assert kinds(tmp_path / "missing.tar") == ["not_found"]
    assert kinds(whole, max_bytes=10) == ["too_many_bytes"] * 5


def test_a_link_with_the_name_of_an_image_has_its_row(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "s.tar", 1)
    with tarfile.open(tar, "a") as archive:
        for name, kind in (("hard.png", tarfile.LNKTYPE), ("soft.png", tarfile.SYMTYPE), ("soft.txt", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(f"set/{name}")
            member.type, member.linkname = kind, "set/000.png"
            archive.addfile(member)
    rows = list(read_tar(str(tar), 10_000))
    assert [name for name, _, _ in rows] == [f"{tar}/set/{name}" for name in ("000.png", "hard.png", "soft.png")]
    assert kinds(tar) == ["image", "unreadable", "unreadable"]


def test_a_disk_that_fails_is_no_damaged_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage, "open_stream", lambda path: Failing())
    with pytest.raises(StorageError, match="--resume"):
        list(read_tar("x.tar", 100))


def test_a_shard_is_gone_on_with_in_its_middle(model: Path, tmp_path: Path) -> None:
    tar, out, settings = write_tar(tmp_path / "s.tar", 11), tmp_path / "out", Settings(part_rows=4)
    batch([str(tar)], out, model, settings=settings)
    for part in sorted(out.glob("part-*"))[1:]:
        part.unlink()
    assert batch([str(tar)], out, model, settings=settings, resume=True).new_rows == 7
    assert list(pd.read_parquet(out).image) == [f"{tar}/set/{index:03d}.png" for index in range(11)]


def test_urls_for_images_shards_and_results(model: Path, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/in/a.png", png("RED"))
    fs.pipe_file("/in/b.tar", write_tar(tmp_path / "s.tar", 2).read_bytes())
    fs.pipe_file("/in/c.png", b"x" * 5000)
    fs.pipe_file("/in/list.txt", b"a.png\nmissing.png\n")
    settings = Settings(max_bytes=4000)
    inputs = ["memory://in", "memory://in/list.txt"]
    summary = batch(inputs, "memory://out", model, settings=settings)
    assert (summary.rows, summary.errors, summary.finished) == (6, 2, True)
    rows = pd.concat(pd.read_parquet(io.BytesIO(fs.cat_file(path))) for path in sorted(fs.glob("/out/part-*")))
    assert list(rows.error_code.fillna("")) == ["", "", "", "too_many_bytes", "", "not_found"]
    assert fs.exists("/out/_manifest.json") and not [path for path in fs.ls("/out", detail=False) if "tmp" in path]
    assert batch(inputs, "memory://out", model, settings=settings, resume=True).new_rows == 0
    (tmp_path / "a.png").write_bytes(png("BLUE"))
    assert batch([f"file://{tmp_path}/a.png"], f"file://{tmp_path}/out", model).rows == 1
    assert list(pd.read_parquet(tmp_path / "out").diagnosis_code) == ["BLUE"]


def test_storage_that_is_gone_ends_the_job_instead_of_filling_it_with_errors(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(storage.RETRYING, "wait", wait_none())
    (tmp_path / "list.txt").write_text("".join(f"memory://gone/{index}.png\n" for index in range(500)))

    def unreachable(self: Any, path: str, **options: Any) -> bytes:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(fs), "cat_file", unreachable)
    with pytest.raises(StorageError, match=r"in a row could not be fetched.*no route to host"):
        batch([str(tmp_path / "list.txt")], tmp_path / "out", model)


def test_a_fetch_that_fails_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/once/a.png", b"data")
    monkeypatch.setattr(storage.RETRYING, "wait", wait_none())
    whole, failures = type(fs).cat_file, iter([1, 1])

    def flaky(self: Any, path: str, **options: Any) -> Any:
        if next(failures, None):
            raise TimeoutError
        return whole(self, path, **options)

    monkeypatch.setattr(type(fs), "cat_file", flaky)
    assert storage.Fetcher(100).fetch("memory://once/a.png") == b"data"


def test_no_more_is_read_ahead_than_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that stands still stops the reader: back-pressure."""
    taken = 0

    def endless(path: str, max_bytes: int) -> Iterator[tuple[str, bytes, int]]:
        nonlocal taken
        while True:
            taken += 1
            yield "x", b"x", 0

    monkeypatch.setattr(items, "read_tar", endless)
    stream = items.read_items([(Unit(0, (Source("x.tar", True),)), 0)], 100)
    next(stream)
    time.sleep(0.3)
    stream.close()
    assert 1 <= taken <= items.READ_AHEAD + 2
    fetched: list[str] = []
    monkeypatch.setattr(storage.Fetcher, "fetch", lambda self, url: fetched.append(url) or b"")
    names = tuple(Source(f"memory://{index}.png") for index in range(1000))
    stream = items.read_items([(Unit(0, names), 0)], 100)
    next(stream)
    time.sleep(0.1)
    stream.close()
    assert 1 <= len(fetched) <= items.READ_AHEAD
