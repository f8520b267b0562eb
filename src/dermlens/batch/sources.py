"""Inputs of a batch -> a listing on disk of images and tar shards, its fingerprint, and units of work.

Memory never holds the listing as a whole, only the names of one folder or the matches of a glob. Tar shards
(WebDataset's layout) are read as a stream and never unpacked.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dermlens.batch import storage
from dermlens.data.images import IMAGE_EXTENSIONS, UNREAD_IMAGE_EXTENSIONS
from dermlens.errors import DataError, ImageError, StorageError, UsageError

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
TABLE_ENDINGS = (".csv", ".tsv", ".parquet")
LIST_ENDINGS = (".txt", ".lst")
IMAGE_COLUMNS = ("image", "image_path", "path", "file", "file_name", "filename", "filepath", "url")
BYTES_AN_IMAGE = 30_000  # a guess for images in a tar; only the time left depends on it


@dataclass(frozen=True)
class Source:
    """An image file, or a tar shard with any number of images; `weight` is about its number of images."""

    path: str
    is_tar: bool = False
    frame_aspect: float | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Unit:
    """What one worker answers at a time, and can answer again: some image files, or one tar shard."""

    number: int
    sources: tuple[Source, ...]

    @property
    def tar(self) -> Source | None:
        """The shard, when it is one."""
        return self.sources[0] if self.sources[0].is_tar else None

    @property
    def weight(self) -> float:
        """About how many images."""
        return sum(source.weight for source in self.sources)


@dataclass(frozen=True)
class Listing:
    """The sources of one shard of a batch; `sha256` and `sources` are of all shards, `notes` is for a person."""

    sha256: str
    sources: int
    weight: float
    notes: tuple[str, ...]
    _spool: IO[str]

    def units(self, rows: int) -> Iterator[Unit]:
        """Yield the units of this shard in order: at most `rows` image files each, or a tar."""
        number, waiting = 0, list[Source]()
        self._spool.seek(0)
        for source in (Source(*json.loads(line)) for line in self._spool):
            if waiting and (source.is_tar or waiting[0].is_tar or len(waiting) == rows):
                yield Unit(number, tuple(waiting))
                number, waiting = number + 1, []
            waiting.append(source)
        if waiting:
            yield Unit(number, tuple(waiting))


def read_listing(
    arguments: Iterable[str],
    *,
    images: str | None = None,
    frame_aspect: float | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Listing:
    """List what is meant by folders, globs, tables, lists of names, tar shards and single images; no image is opened.

    A name in a table or list, or the URL of an image or tar shard, need not exist: its row will carry the error. All
    other inputs must: a mistyped folder must not pass for one bad image.

    Args:
        images: folder or URL that the names in tables and lists are below; where the table stands by default.
        frame_aspect: of the camera, for images whose table does not say.
        shard: (i, n) keeps every n-th source from the i-th on, i from 1.
    Raises:
        UsageError: no image at all (code `no_images`), or an input that is not there (`not_found`).
        DataError: a table without a column of images, or with an empty cell in it.
    """
    index, count = shard
    spool = tempfile.TemporaryFile("w+", encoding="utf-8", prefix="dermlens-listing-")  # noqa: SIM115
    digest, notes = hashlib.sha256(), list[str]()
    total, weight = 0, 0.0
    for source in _sources(arguments, images, frame_aspect, notes):
        line = json.dumps([source.path, source.is_tar, source.frame_aspect, source.weight]) + "\n"
        digest.update(line.encode())
        if total % count == index - 1:
            spool.write(line)
            weight += source.weight
        total += 1
    if not total:
        tables, lists, endings = (", ".join(names) for names in (TABLE_ENDINGS, LIST_ENDINGS, sorted(IMAGE_EXTENSIONS)))
        remedy = f"Name a folder, a glob, a table ({tables}), a list ({lists}), tar shards or images ({endings})."
        raise UsageError(f"No images found. {' '.join(notes)}".rstrip(), remedy=remedy, code="no_images")
    return Listing(digest.hexdigest(), total, weight, tuple(notes), spool)


def _sources(
    arguments: Iterable[str], images: str | None, frame_aspect: float | None, notes: list[str]
) -> Iterator[Source]:
    for argument in map(storage.plain, arguments):
        if storage.is_pattern(argument):
            found = storage.matches(argument)
            if not found:
                notes.append(f"{argument}: nothing matches.")
        else:
            _check_there(argument)
            found = [argument]
        for path in found:
            if path.lower().endswith(TABLE_ENDINGS):
                yield from _from_table(path, images, frame_aspect)
            elif path.lower().endswith(LIST_ENDINGS):
                yield from _from_list(path, images, frame_aspect)
            elif storage.is_folder(path):
                yield from _from_folder(path, frame_aspect, notes)
            else:
                yield _source(path, frame_aspect)


def _check_there(argument: str) -> None:
    has_row = is_image_name(argument) or argument.lower().endswith(TAR_ENDINGS)
    if not (storage.is_url(argument) and has_row) and not storage.exists(argument):
        remedy = "Check the name, and that you may read it."
        raise UsageError(f"No such file or folder: {argument!r}.", remedy=remedy, code="not_found")


def _source(path: str, frame_aspect: float | None) -> Source:
    if not path.lower().endswith(TAR_ENDINGS):
        return Source(path, False, frame_aspect)
    size = storage.size_bytes(path) or 0
    return Source(path, True, frame_aspect, max(1.0, size / BYTES_AN_IMAGE))


def _from_folder(folder: str, frame_aspect: float | None, notes: list[str]) -> Iterator[Source]:
    others, found, links = 0, 0, list[str]()
    for path in storage.walk(folder, links):
        if is_image_name(path) or path.lower().endswith(TAR_ENDINGS):
            found += 1
            yield _source(path, frame_aspect)
        else:
            others += 1
    if not found:
        notes.append(f"{folder}: no images in this folder.")
    if others:
        notes.append(f"{folder}: {others} skipped (no image by the extension).")
    if links:
        notes.append(f"{folder}: {len(links)} skipped (links to folders; name those folders too).")


def is_image_name(path: str) -> bool:
    """Whether the extension is that of an image, of formats that cannot be read too: an answer is due."""
    return PurePosixPath(path).suffix.lower() in IMAGE_EXTENSIONS | UNREAD_IMAGE_EXTENSIONS


def _from_list(path: str, images: str | None, frame_aspect: float | None) -> Iterator[Source]:
    base = images if images is not None else storage.parent(path)
    with _open(path) as file:
        for line in file:
            name = line.decode("utf-8-sig", "surrogateescape").rstrip("\r\n")
            if name.strip():
                yield _source(storage.join(base, name), frame_aspect)


def _from_table(path: str, images: str | None, frame_aspect: float | None) -> Iterator[Source]:
    base = images if images is not None else storage.parent(path)
    read = _parquet_cells if path.lower().endswith(".parquet") else _csv_cells
    try:
        with _open(path) as file:
            for number, (name, aspect) in enumerate(read(path, file), 1):
                if not name:
                    raise _bad_table(f"{path} names no image in row {number}.", "Fill or remove that row.")
                yield _source(storage.join(base, name), _number(path, number, aspect) or frame_aspect)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        what = f"{path} cannot be read as a table: {str(error).splitlines()[0]}."
        raise _bad_table(what, "Save it again as CSV (UTF-8) or Parquet.") from error


def _csv_cells(path: str, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield (image, frame aspect) of each row as they are in the table."""
    lines = (line.decode("utf-8-sig") for line in file)
    first = next(lines, "")
    delimiter = max(",;\t", key=first.count)
    image, aspect = _columns(path, next(csv.reader([first], delimiter=delimiter), []))
    for row in csv.reader(lines, delimiter=delimiter):
        if any(cell.strip() for cell in row):
            cells = dict(enumerate(cell.strip() for cell in row))
            yield cells.get(image, ""), None if aspect is None else cells.get(aspect)


def _parquet_cells(path: str, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    table = pq.ParquetFile(file)
    names = table.schema_arrow.names
    chosen = [names[index] for index in _columns(path, names) if index is not None]
    for batch in table.iter_batches(batch_size=10_000, columns=chosen):
        for name, *aspect in zip(*(batch[name].to_pylist() for name in chosen), strict=True):
            yield str(name or "").strip(), aspect[0] if aspect else None


def _columns(path: str, names: list[str]) -> tuple[int, int | None]:
    """Return the positions of the image and of its frame aspect, where the table has one."""
    lower = [name.strip().lower() for name in names]
    for name in IMAGE_COLUMNS:
        if name in lower:
            return lower.index(name), lower.index("frame_aspect") if "frame_aspect" in lower else None
    what = f"{path} has the columns {', '.join(lower) or 'none'}. One must hold the images: {', '.join(IMAGE_COLUMNS)}."
    raise DataError(what, remedy="Rename that column to image.", code="missing_columns")


def _number(path: str, row: int, value: Any) -> float | None:
    try:
        number = None if value in (None, "") or math.isnan(float(value)) else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number is not None and not 0 < number < math.inf:
        what = f"{path} has frame_aspect {value!r} in row {row}. Allowed: a number above 0, or nothing."
        raise _bad_table(what, "Correct or empty that cell.")
    return number


def _open(path: str) -> IO[bytes]:
    with storage.reaching(path):
        return storage.open_stream(path)


def _bad_table(what: str, remedy: str) -> DataError:
    return DataError(what, remedy=remedy, code="bad_table")


DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error)


def read_tar(path: str, max_bytes: int) -> Iterator[tuple[str, bytes | ImageError, int]]:
    """Yield (name, bytes or why there are none, offset in the archive) for each image, in the archive's order.

    The name is PATH/MEMBER. Members that are no images by their extension (`.json`, `.cls`) are skipped. When the shard
    is missing, holds no image or is cut off, a last item named PATH says so: what came before stays.
    """
    try:
        file = storage.open_stream(path)
    except storage.PERMANENT as error:
        missing = isinstance(error, FileNotFoundError)
        why = "does not exist" if missing else f"cannot be opened: {error}"
        code = "not_found" if missing else "unreadable"
        yield path, ImageError(f"The shard {path!r} {why}.", remedy="Check the path.", code=code), 0
        return
    count, problem = 0, ""
    try:
        with file, tarfile.open(fileobj=cast(BinaryIO, _Stream(file, path)), mode="r|*", tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if (member.isfile() or member.islnk() or member.issym()) and _is_image(member.name):
                    data = _bytes(tar, member, max_bytes) if member.isfile() else _link(member)
                    yield f"{path}/{member.name}", data, member.offset
                    count += 1
            if not getattr(tar, "saw_end", False):
                problem = "it has no end mark"
    except DAMAGED as error:
        problem = str(error) or type(error).__name__
    if problem:
        what = f"The shard {path!r} is cut off or damaged after {count} images: {problem}."
        remedy = "Copy or make it again; its later images are not among these rows."
        yield path, ImageError(what, remedy=remedy, code="bad_shard"), 0
    elif not count:
        what = f"The shard {path!r} holds no images."
        yield path, ImageError(what, remedy="Check what is in it.", code="no_images"), 0


class _Stream:
    """Makes an error of the disk or network, which ends the job, differ from damage, which costs the archive's rest."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file, self._path = file, path

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:  # plug-ins raise errors of their own
            what = f"The rest of shard {self._path!r} could not be read: {type(error).__name__}: {error}."
            remedy = "When it can be reached again, add --resume to continue."
            raise StorageError(what, remedy=remedy, code="unreachable") from error


class _Member(tarfile.TarInfo):
    """Notes that the archive's end mark was read: tarfile takes a cut or damaged archive for a finished one."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.saw_end = True
            raise


def _is_image(name: str) -> bool:
    hidden = any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))
    return is_image_name(name) and not hidden


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | ImageError:
    if member.size > max_bytes:
        what = f"The image {member.name!r} has {member.size:,} bytes. At most {max_bytes:,} are allowed."
        remedy = "Save a smaller copy, or raise max_bytes if you trust the file."
        return ImageError(what, remedy=remedy, code="too_many_bytes")
    content = tar.extractfile(member)
    data = b"" if content is None else content.read()
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _link(member: tarfile.TarInfo) -> ImageError:
    what = f"The image {member.name!r} is only a link to {member.linkname!r}, which a stream cannot go back to."
    remedy = "Pack files instead of links (tar --dereference --hard-dereference)."
    return ImageError(what, remedy=remedy, code="unreadable")
