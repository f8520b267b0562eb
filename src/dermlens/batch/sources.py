"""What a batch is asked for -> a listing on disk of images and tar shards, its fingerprint, and units of work.

The listing is a stream: it is never held in memory as a whole, save the names of one folder or the matches of a glob.

Images out of tar shards (WebDataset's layout), read as a stream and never unpacked.
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
BYTES_AN_IMAGE = 30_000
"""What an image in a tar is taken to weigh, for the time left alone."""


@dataclass(frozen=True)
class Source:
    """An image file, or a tar shard with any number of images; `weight` is about its number of images."""

    path: str
    is_tar: bool = False
    frame_aspect: float | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Unit:
    """What is answered as a whole and can be answered anew: some image files, or one tar shard."""

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
    """The sources of one shard of a batch.

    Attributes:
        sha256: of the listing of all shards.
        sources: how many in all shards.
        images: image files in this shard.
        tars: tar files in this shard.
        weight: about how many images in this shard.
        notes: what a person should know.
    """

    sha256: str
    sources: int
    images: int
    tars: int
    weight: float
    notes: tuple[str, ...]
    _spool: IO[str]

    def units(self, rows: int) -> Iterator[Unit]:
        """Yield the units of this shard in order: at most `rows` image files each, or a tar."""
        number, waiting = 0, list[Source]()
        for source in self._read():
            if waiting and (source.is_tar or len(waiting) == rows):
                yield Unit(number, tuple(waiting))
                number, waiting = number + 1, []
            waiting.append(source)
            if source.is_tar:
                yield Unit(number, tuple(waiting))
                number, waiting = number + 1, []
        if waiting:
            yield Unit(number, tuple(waiting))

    def _read(self) -> Iterator[Source]:
        self._spool.seek(0)
        for line in self._spool:
            yield Source(*json.loads(line))


def read_listing(
    arguments: Iterable[str],
    *,
    images: str | None = None,
    frame_aspect: float | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Listing:
    """List what is meant by folders, globs, tables, lists of names, tar shards and single images; no image is opened.

    A name in a table or list counts whether it is there or not: its row will carry the error. So does the URL of an
    image or tar shard. All else that is named here must be there: a mistyped folder must not pass for one bad image.

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
    total = own = tars = 0
    weight = 0.0
    for source in _sources(arguments, images, frame_aspect, notes):
        line = json.dumps([source.path, source.is_tar, source.frame_aspect, source.weight]) + "\n"
        digest.update(line.encode())
        if total % count == index - 1:
            spool.write(line)
            own += 1
            tars += source.is_tar
            weight += source.weight
        total += 1
    if not total:
        raise UsageError(
            f"No images found. {' '.join(notes)}".rstrip(),
            remedy=f"Name a folder, a glob, a table ({', '.join(TABLE_ENDINGS)}), a list ({', '.join(LIST_ENDINGS)}), "
            f"tar shards or images ({', '.join(sorted(IMAGE_EXTENSIONS))}).",
            code="no_images",
        )
    return Listing(digest.hexdigest(), total, own - tars, tars, weight, tuple(notes), spool)


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
    answered = is_image_name(argument) or argument.lower().endswith(TAR_ENDINGS)
    if (storage.is_url(argument) and answered) or storage.exists(argument):
        return
    raise UsageError(
        f"No such file or folder: {argument!r}.",
        remedy="Check the name, and that you may read it.",
        code="not_found",
    )


def _source(path: str, frame_aspect: float | None) -> Source:
    if not path.lower().endswith(TAR_ENDINGS):
        return Source(path, False, frame_aspect)
    size = storage.size_bytes(path) or 0
    return Source(path, True, frame_aspect, max(1.0, size / BYTES_AN_IMAGE))


def _from_folder(folder: str, frame_aspect: float | None, notes: list[str]) -> Iterator[Source]:
    others = found = 0
    linked: list[str] = []
    for path in storage.walk(folder, linked):
        if is_image_name(path) or path.lower().endswith(TAR_ENDINGS):
            found += 1
            yield _source(path, frame_aspect)
        else:
            others += 1
    if not found:
        notes.append(f"{folder}: no images in this folder.")
    if others:
        notes.append(f"{folder}: {others} other file{'s' if others > 1 else ''} left out (not images by extension).")
    if linked:
        notes.append(
            f"{folder}: {len(linked)} linked subfolder{'s' if len(linked) > 1 else ''} left out; name them too."
        )


def is_image_name(path: str) -> bool:
    """Whether the extension is that of an image, of formats that cannot be read too: an answer is due."""
    return PurePosixPath(path).suffix.lower() in IMAGE_EXTENSIONS | UNREAD_IMAGE_EXTENSIONS


def _from_list(path: str, images: str | None, frame_aspect: float | None) -> Iterator[Source]:
    base = images if images is not None else storage.parent(path)
    with _opened(path) as file:
        for line in file:
            name = line.decode("utf-8-sig", "surrogateescape").rstrip("\r\n")
            if name.strip():
                yield _source(storage.join(base, name), frame_aspect)


def _from_table(path: str, images: str | None, frame_aspect: float | None) -> Iterator[Source]:
    base = images if images is not None else storage.parent(path)
    for number, (name, aspect) in enumerate(_cells(path), 1):
        if not name:
            raise DataError(
                f"{path} names no image in row {number}. Every row needs one.",
                remedy="Fill or remove that row.",
                code="bad_table",
            )
        yield _source(storage.join(base, name), _number(path, number, aspect) or frame_aspect)


def _cells(path: str) -> Iterator[tuple[str, Any]]:
    """Yield (image, frame aspect) of each row as they stand in the table."""
    with _opened(path) as file:
        if path.lower().endswith(".parquet"):
            yield from _parquet_cells(path, file)
            return
        lines = (line.decode("utf-8-sig") for line in file)
        try:
            first = next(lines, "")
            cells = csv.reader([first], delimiter=(mark := max(",;\t", key=first.count)))
            columns = [cell.strip().lower() for cell in next(cells, [])]
            image = columns.index(_image_column(path, columns))
            aspect = columns.index("frame_aspect") if "frame_aspect" in columns else None
            for row in csv.reader(lines, delimiter=mark):
                if any(cell.strip() for cell in row):
                    padded = [*row, *[""] * (len(columns) - len(row))]
                    yield padded[image].strip(), padded[aspect].strip() if aspect is not None else None
        except (UnicodeDecodeError, csv.Error) as error:
            raise _bad_table(path, error) from error


def _parquet_cells(path: str, file: Any) -> Iterator[tuple[str, Any]]:
    try:
        table = pq.ParquetFile(file)
        by_lower = {name.lower(): name for name in table.schema_arrow.names}
        image = by_lower[_image_column(path, list(by_lower))]
        wanted = [image, *([by_lower["frame_aspect"]] if "frame_aspect" in by_lower else [])]
        for batch in table.iter_batches(batch_size=10_000, columns=wanted):
            aspects = batch.column(1).to_pylist() if len(wanted) > 1 else [None] * len(batch)
            for name, aspect in zip(batch.column(0).to_pylist(), aspects, strict=True):
                yield str(name or "").strip(), aspect
    except pa.ArrowException as error:
        raise _bad_table(path, error) from error


def _image_column(path: str, columns: list[str]) -> str:
    for name in IMAGE_COLUMNS:
        if name in columns:
            return name
    raise DataError(
        f"{path} has the columns {', '.join(columns) or 'none'}. One must hold the images: {', '.join(IMAGE_COLUMNS)}.",
        remedy="Rename that column to image.",
        code="missing_columns",
    )


def _number(path: str, row: int, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if math.isnan(number):
        return None
    if not 0 < number < math.inf:
        raise DataError(
            f"{path} has frame_aspect {value!r} in row {row}. Allowed: a number above 0, or nothing.",
            remedy="Correct or empty that cell.",
            code="bad_table",
        )
    return number


def _opened(path: str) -> IO[bytes]:
    with storage.reaching(path):
        return storage.open_stream(path)


def _bad_table(path: str, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read as a table: {str(error).splitlines()[0]}.",
        remedy="Save it again as CSV (UTF-8) or Parquet.",
        code="bad_table",
    )


DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error)


def read_tar(path: str, max_bytes: int) -> Iterator[tuple[str, bytes | ImageError, int]]:
    """Yield (name, bytes or why there are none, offset in the archive) for each image, in the archive's order.

    The name is PATH/MEMBER. Members that are no images by their extension (`.json`, `.cls`) are passed over. When the
    shard is missing, holds no image or ends before its end, a last item named PATH says so: what came before stays.
    """
    try:
        file = storage.open_stream(path)
    except FileNotFoundError:
        yield path, ImageError(f"The shard {path!r} does not exist.", remedy="Check the path.", code="not_found"), 0
        return
    except storage.PERMANENT as error:
        yield (
            path,
            ImageError(f"The shard {path!r} cannot be opened: {error}.", remedy="Check it.", code="unreadable"),
            0,
        )
        return
    count = 0
    try:
        with file, tarfile.open(fileobj=cast(BinaryIO, _Stream(file, path)), mode="r|*", tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if (member.isfile() or member.islnk() or member.issym()) and _is_image(member.name):
                    data = _bytes(tar, member, max_bytes) if member.isfile() else _link(member)
                    yield f"{path}/{member.name}", data, member.offset
                    count += 1
            if not getattr(tar, "saw_end", False):
                yield path, _incomplete(path, count, "it has no end mark"), 0
            elif not count:
                yield path, _empty(path), 0
    except DAMAGED as error:
        yield path, _incomplete(path, count, str(error) or type(error).__name__), 0


class _Stream:
    """Tells a disk or network that fails, which ends the job, from an archive that is damaged, which costs its rest."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file, self._path = file, path

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:  # plug-ins raise errors of their own
            raise StorageError(
                f"The shard {self._path!r} could not be read on: {type(error).__name__}: {error}.",
                remedy="When it can be reached again, go on with --resume.",
                code="unreachable",
            ) from error


class _Member(tarfile.TarInfo):
    """Notes on the archive that its end mark was met: tarfile takes a cut or damaged archive for a finished one."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.saw_end = True
            raise


def _is_image(name: str) -> bool:
    hidden = any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))
    return is_image_name(name) and not hidden


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | ImageError:
    if member.size > max_bytes:
        return ImageError(
            f"The image {member.name!r} has {member.size:,} bytes. At most {max_bytes:,} are allowed.",
            remedy="Save a smaller copy, or raise max_bytes if you trust the file.",
            code="too_many_bytes",
        )
    content = tar.extractfile(member)
    data = b"" if content is None else content.read()
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _link(member: tarfile.TarInfo) -> ImageError:
    return ImageError(
        f"The image {member.name!r} is only a link to {member.linkname!r}, which a stream cannot go back to.",
        remedy="Pack files instead of links (tar --dereference --hard-dereference).",
        code="unreadable",
    )


def _incomplete(path: str, count: int, why: str) -> ImageError:
    return ImageError(
        f"The shard {path!r} is cut off or damaged after {count} images: {why}.",
        remedy="Copy or make it again; its later images are not among these rows.",
        code="bad_shard",
    )


def _empty(path: str) -> ImageError:
    return ImageError(f"The shard {path!r} holds no images.", remedy="Check what is in it.", code="no_images")
