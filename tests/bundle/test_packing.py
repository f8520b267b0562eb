"""A bundle as one file: the same bytes each time, and nothing but a bundle comes out."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
from pathlib import Path

import pytest

import tiny
from dermlens import Predictor
from dermlens.bundle import library
from dermlens.bundle.bundle import load_bundle
from dermlens.bundle.library import pack, unpack
from dermlens.errors import BundleError, DermlensError, StorageError, UsageError


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("packed")
    pack(load_bundle(tiny.write(base / "b")), base / "tiny.dermlens.zip")
    return base / "tiny.dermlens.zip"


def test_there_and_back_is_the_same_model_and_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    bundle = unpack(packed, tmp_path / "out")
    assert bundle.sha256 == load_bundle(packed.parent / "b").sha256
    assert Predictor(tmp_path / "out").predict(tiny.colour("RED")).diagnosis_code == "RED"
    for path in (tmp_path / "out").iterdir():
        os.utime(path, (0, 0))
        path.chmod(0o600)
    (tmp_path / "out" / "notes.txt").write_text("not part of the bundle")
    pack(bundle, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


def spoiled(packed: Path, path: Path, **changes: bytes | zipfile.ZipInfo) -> Path:
    """Copy a package with entries added or changed; a ZipInfo is added as it is."""
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, changes.pop(name, source.read(name)))  # type: ignore[arg-type]
        for name, data in changes.items():
            target.writestr(data if isinstance(data, zipfile.ZipInfo) else name, b"x" if name == "entry" else data)  # type: ignore[arg-type]
    return path


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"../outside.txt": b"x"}, "without folders"),
        ({"/absolute.txt": b"x"}, "without folders"),
        ({"a\\..\\b": b"x"}, "without folders"),
        ({"folder/": b""}, "without folders"),
        ({".hidden": b"x"}, "without folders"),
        ({"entry": link("graph2.bin")}, "no plain file"),
        ({"extra.py": b"import os"}, "does not list"),
        ({"graph.bin": b"other weights"}, "SHA-256"),
        ({f"more{number}.txt": b"x" for number in range(40)}, "holds 4"),
        ({"bundle.json": b"{}"}, "schema"),
    ],
)
def test_what_is_no_bundle_is_refused_and_nothing_lands_outside(
    packed: Path, tmp_path: Path, changes: dict[str, bytes], said: str
) -> None:
    path = spoiled(packed, tmp_path / "bad.zip", **changes)
    (tmp_path / "in" / "out").mkdir(parents=True)
    with pytest.raises(BundleError, match=said):
        unpack(path, tmp_path / "in" / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"bad.zip", "in"} and len(list((tmp_path / "in").iterdir())) == 1


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_damaged_compressed_file_is_refused_unread(packed: Path, tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(tmp_path / "c.zip", "w", method) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    data = bytearray((tmp_path / "c.zip").read_bytes())
    data[60:90] = b"\xff" * 30
    (tmp_path / "c.zip").write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="compressed"):
        unpack(tmp_path / "c.zip", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_a_name_that_is_no_text_is_refused(packed: Path, tmp_path: Path) -> None:
    spoiled(packed, tmp_path / "n.zip", exträ=b"x")
    path = tmp_path / "bad.zip"
    path.write_bytes((tmp_path / "n.zip").read_bytes().replace("exträ".encode(), b"extr\xff\xff"))
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="damaged"):
        unpack(path, tmp_path / "out")


def test_only_a_package_is_written_over(packed: Path, tmp_path: Path) -> None:
    bundle = load_bundle(packed.parent / "b")
    for path in (tmp_path / "thesis.txt", tmp_path / "folder"):
        path.mkdir() if path.name == "folder" else path.write_text("years of work")
        with pytest.raises(UsageError, match="is no package"):
            pack(bundle, path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    pack(bundle, tmp_path / "x.zip")
    pack(bundle, tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == packed.read_bytes()


def test_a_card_that_names_a_file_outside_is_not_packed(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "b")
    (tmp_path / "secret").write_text("secret")
    card = json.loads((folder / "bundle.json").read_text())
    card["files"]["../secret"] = hashlib.sha256(b"secret").hexdigest()
    (folder / "bundle.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="without folders"):
        pack(load_bundle(folder), tmp_path / "x.zip")


def test_sizes_are_bounded_whatever_the_file_says(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "MAX_BYTES", 1000)
    tmp_path.joinpath("out").mkdir()
    with pytest.raises(BundleError, match="unpacks to more"):
        unpack(packed, tmp_path / "out")
    monkeypatch.setattr(library, "_check_entries", lambda path, entries: None)  # as if the sizes had been lied about
    with pytest.raises(BundleError, match="more than it says"):
        unpack(packed, tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 1000


def test_what_is_no_zip_and_what_cannot_be_written_say_so(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(packed.read_bytes()[:500])
    for path in (tmp_path / "cut.zip", tmp_path / "none.zip"):
        (tmp_path / path.stem).mkdir()
        with pytest.raises(DermlensError):
            unpack(path, tmp_path / path.stem)
    with pytest.raises(StorageError, match="could not be written"):
        pack(load_bundle(packed.parent / "b"), tmp_path / "cut.zip" / "x.zip")
