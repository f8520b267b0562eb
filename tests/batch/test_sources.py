"""Every way to name images ends in the same listing: in order, complete, shared out, and not held in memory."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dermlens.batch.sources import Listing, read_listing
from dermlens.errors import DataError, DermlensError, MissingExtraError, UsageError

NAMES = ("a.png", "b.jpg", "sub/c.webp")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*NAMES, "notes.md", ".hidden.png", "__MACOSX/d.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "in"


def paths(listing: Listing, rows: int = 1000) -> list[str]:
    return [source.path for unit in listing.units(rows) for source in unit.sources]


def expected(folder: Path) -> list[str]:
    return [str(folder / name) for name in NAMES]


def test_a_folder_is_walked_in_order_and_says_what_it_leaves_out(folder: Path) -> None:
    listing = read_listing([str(folder)])
    assert paths(listing) == expected(folder) and listing.weight == 3
    assert listing.notes == (f"{folder}: 1 skipped (no image by the extension).",)
    assert paths(read_listing([f"file://{folder}"])) == expected(folder)


def test_a_glob_a_list_and_tables_name_the_same_images(folder: Path) -> None:
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in NAMES) + "\n")
    (folder / "names.csv").write_text("diagnosis;Image\n" + "".join(f"NV;{name}\n" for name in NAMES))
    pq.write_table(pa.table({"x": [1, 2, 3], "image": list(NAMES)}), folder / "names.parquet")
    found = [paths(read_listing([str(folder / name)])) for name in ("names.txt", "names.csv", "names.parquet")]
    assert found == [expected(folder)] * 3
    assert paths(read_listing([str(folder / "**" / "*.[jpw]*g")])) == expected(folder)[:2]
    assert paths(read_listing([str(folder / "names.txt")], images="else/where"))[0] == "else/where/a.png"


def test_linked_subfolders_are_counted_and_not_entered(folder: Path) -> None:
    (folder / "again").symlink_to(folder, target_is_directory=True)
    listing = read_listing([str(folder)])
    assert paths(listing) == expected(folder)
    assert listing.notes[-1] == f"{folder}: 1 skipped (links to folders; name those folders too)."


def test_a_byte_order_mark_is_no_part_of_the_first_name(folder: Path) -> None:
    (folder / "names.txt").write_text("a.png\nb.jpg\n", encoding="utf-8-sig")
    assert paths(read_listing([str(folder / "names.txt")])) == expected(folder)[:2]


def test_endings_may_be_in_capitals(folder: Path) -> None:
    (folder / "L.TXT").write_text("a.png\n")
    (folder / "L.CSV").write_text("image\na.png\n")
    pq.write_table(pa.table({"image": ["a.png"]}), folder / "L.PARQUET")
    found = [paths(read_listing([str(folder / name)])) for name in ("L.TXT", "L.CSV", "L.PARQUET")]
    assert found == [[str(folder / "a.png")]] * 3


@pytest.mark.parametrize("name", ["fotos", "a.jpeg", "s.tar", "t.csv", "l.txt", ""])
def test_an_input_that_is_not_there_is_told_and_a_name_in_a_list_gets_its_row(name: str, folder: Path) -> None:
    missing = name and str(folder / name)
    with pytest.raises(UsageError, match="No such file or folder") as caught:
        list(read_listing([str(folder), missing]).units(9))
    assert caught.value.code == "not_found"
    (folder / "names.lst").write_text("gone.png\n")
    assert paths(read_listing([str(folder / "names.lst")])) == [str(folder / "gone.png")]


def test_a_url_that_is_not_there_is_told_unless_it_names_an_image_or_a_shard() -> None:
    assert paths(read_listing(["memory://gone/a.PNG"])) == ["memory://gone/a.PNG"]
    assert paths(read_listing(["memory://gone/s.tar"])) == ["memory://gone/s.tar"]
    for url in ("memory://gone", "memory://gone/t.csv"):
        with pytest.raises(UsageError, match="No such file or folder"):
            read_listing([url])


def test_a_file_with_the_name_of_a_glob_is_that_file(tmp_path: Path) -> None:
    odd = tmp_path / "a[1].png"
    odd.write_bytes(b"x")
    assert paths(read_listing([str(odd)])) == [str(odd)]


def test_the_frame_aspect_of_a_table_goes_before_the_general_one(folder: Path) -> None:
    (folder / "names.csv").write_text("image,frame_aspect\na.png,1.5\nb.jpg,\n")
    listing = read_listing([str(folder / "names.csv")], frame_aspect=1.25)
    assert [s.frame_aspect for unit in listing.units(9) for s in unit.sources] == [1.5, 1.25]


def test_a_url_is_listed_like_a_folder() -> None:
    fs = fsspec.filesystem("memory")
    for name in (*NAMES, "notes.md", ".hidden.png"):
        fs.pipe_file(f"/listing/{name}", b"x")
    assert paths(read_listing(["memory://listing"])) == [f"memory:///listing/{name}" for name in NAMES]
    assert paths(read_listing(["memory://listing/*.png"])) == ["memory:///listing/a.png"]
    fs.pipe_file("/listing/names.csv", b"image\na.png\nsub/c.webp\n")
    table = read_listing(["memory://listing/names.csv"])
    assert paths(table) == ["memory://listing/a.png", "memory://listing/sub/c.webp"]


def test_units_hold_some_files_or_one_tar(folder: Path) -> None:
    for name in ("a2.tar", "z.tgz"):
        with tarfile.open(folder / name, "w"):
            pass
    units = list(read_listing([str(folder)]).units(2))
    assert [[os.path.basename(s.path) for s in unit.sources] for unit in units] == [
        ["a.png"],
        ["a2.tar"],
        ["b.jpg"],
        ["z.tgz"],
        ["c.webp"],
    ]
    assert [unit.number for unit in units] == [0, 1, 2, 3, 4] and [unit.tar is not None for unit in units][1]


def test_shards_share_everything_out_and_have_one_fingerprint(folder: Path) -> None:
    shards = [read_listing([str(folder)], shard=(index, 2)) for index in (1, 2)]
    assert sorted(paths(shards[0]) + paths(shards[1])) == expected(folder)
    assert len({shard.sha256 for shard in shards}) == 1
    assert read_listing([str(folder / "a.png")]).sha256 != shards[0].sha256


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("t.csv", "x,y\n1,2\n", DataError, "One must hold the images"),
        ("t.csv", "image,x\na.png,1\n ,2\n", DataError, "names no image in row 2"),
        ("t.csv", "image,frame_aspect\na.png,wide\n", DataError, "frame_aspect 'wide' in row 1"),
        ("t.parquet", "no table", DataError, "cannot be read as a table"),
        ("t.csv", None, UsageError, "No such file"),
        ("*.nothing", None, UsageError, "nothing matches"),
    ],
)
def test_a_mistake_is_told(
    name: str, content: str | None, kind: type[DermlensError], words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(kind, match=words):
        read_listing([str(tmp_path / name)])


def test_a_protocol_that_nobody_knows_and_one_without_its_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="not a protocol"):
        read_listing(["nonsense://x/y"])
    with pytest.raises(UsageError, match="chain of URLs"):
        read_listing(["zip://a.png::memory://x.zip"])

    def absent(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(MissingExtraError, match="Install s3fs"):
        read_listing(["s3://bucket/x"])


def test_a_folder_that_cannot_be_listed_is_told_and_not_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match="sub cannot be read: Permission denied"):
        read_listing([str(folder)])
    fs = fsspec.filesystem("memory")

    def unreachable(self: Any, path: str, **options: Any) -> Any:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(type(fs), "isdir", unreachable)
    with pytest.raises(UsageError, match="RuntimeError: no credentials"):
        read_listing(["memory://x"])


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(b"x")
    (tmp_path / "l.txt").write_bytes(b"\xff.png\n")
    assert paths(read_listing([str(tmp_path)])) == paths(read_listing([str(tmp_path / "l.txt")]))
    json.dumps(paths(read_listing([str(tmp_path)])))
