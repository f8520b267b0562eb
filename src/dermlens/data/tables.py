"""CSV tables and the images they name: reading, writing, cells, and finding the file behind a name."""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from dermlens.data.images import IMAGE_EXTENSIONS
from dermlens.errors import DataError, os_errors
from dermlens.files import atomic_file

Row = dict[str, str]

_EMPTY = frozenset({"", "nan", "na", "n/a", "none", "null", "unknown"})
_SHOWN = 3


@dataclass(frozen=True)
class Table:
    """A CSV file: lower-case column names and rows of stripped text; row i is about on line i + 2."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def has(self, *columns: str) -> bool:
        """Whether all these columns are there."""
        return all(column in self.columns for column in columns)


@dataclass(frozen=True)
class ImageIndex:
    """The image files below a folder, found by path or name, with or without extension.

    Attributes:
        paths: files with an image extension, relative to `root`, sorted.
        other_files: how many visible files have another extension.
    """

    root: Path
    paths: tuple[Path, ...]
    other_files: int
    _by_name: dict[str, list[Path]] = field(repr=False)

    @classmethod
    def build(cls, root: Path) -> ImageIndex:
        """Walk `root`; hidden files and folders, `__MACOSX` and the like are left out."""
        files = list(walk_files(root))
        paths = tuple(path for path in files if is_image(path))
        by_name: defaultdict[str, list[Path]] = defaultdict(list)
        for path in paths:
            names = (path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem)
            for name in dict.fromkeys(names):
                by_name[name].append(path)
        return cls(root, paths, len(files) - len(paths), dict(by_name))

    def find(self, name: str) -> list[Path]:
        """Return the files, relative to `root`, that a table's name may mean: none, one, or several copies."""
        return self._by_name.get(Path(name.replace("\\", "/")).as_posix(), [])


def is_image(path: Path) -> bool:
    """Whether the file's extension is that of an image."""
    return path.suffix.lower() in IMAGE_EXTENSIONS


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's, not the user's (`.DS_Store`, `._x.jpg`, `__MACOSX`)."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def walk_files(root: Path) -> Iterator[Path]:
    """Yield all visible files below `root`, relative to it, in sorted order; linked folders are followed once."""
    seen = {root.resolve()}
    for folder, names, files in os.walk(root, followlinks=True):
        visible = []
        for name in sorted(names):
            target = Path(folder, name).resolve()
            if not is_hidden(name) and target not in seen:
                seen.add(target)
                visible.append(name)
        names[:] = visible
        below = Path(folder).relative_to(root)
        yield from (below / name for name in sorted(files) if not is_hidden(name))


def read_header(path: Path) -> tuple[str, ...]:
    """Return the column names of a CSV file, stripped and in lower case; empty for an empty file."""
    with _opened(path) as lines:
        return tuple(_columns(next(csv.reader(lines, delimiter=_delimiter(path)), [])))


def read_table(path: Path) -> Table:
    """Read a CSV file with a header line; comma, semicolon or tab between the cells, UTF-8.

    Raises:
        DataError: no header, a row with more cells than columns, no UTF-8, not readable; code `bad_csv`.
    """
    with _opened(path) as lines:
        reader = csv.reader(lines, delimiter=_delimiter(path))
        columns = _columns(next(reader, []))
        if not columns:
            _raise_bad_csv(path, "is empty")
        rows = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(columns):
                _raise_bad_csv(path, f"line {reader.line_num} has {len(cells)} cells for {len(columns)} columns")
            rows.append(dict(zip(columns, (cell.strip() for cell in cells), strict=False)))
    return Table(path, tuple(columns), tuple(rows))


def need_columns(table: Table, *needed: str) -> None:
    """`DataError` (code `missing_columns`) that names the columns which are missing and those which are there."""
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise DataError(
            f"{table.path} has the columns {', '.join(table.columns)}. Missing: {', '.join(missing)}.",
            remedy=f"Rename or add columns; needed are {', '.join(needed)}.",
            code="missing_columns",
        )


def cell(row: Row, *columns: str) -> str | None:
    """Return the first of these cells with a value; "", "nan", "NA", "unknown" and the like are none."""
    for column in columns:
        value = row.get(column, "")
        if value.casefold() not in _EMPTY:
            return value
    return None


def number(table: Table, row: Row, *columns: str) -> float | None:
    """Return the first of these cells as a number, None where all are empty; `DataError` for other text."""
    text = cell(row, *columns)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{table.path} has {text!r} in the column {' or '.join(columns)}. Allowed: a number or nothing.",
            remedy="Correct or empty that cell.",
            code="bad_csv",
        )
    return value


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a CSV file whole or not at all.

    Raises:
        StorageError: it cannot be written; an older file is left as it was.
    """
    refusal = os_errors(f"{path} cannot be written", "Choose another place, or make room on the disk.")
    with refusal, atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def shown(names: Sequence[str]) -> str:
    """Return the first three names and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[str]]:
    """Yield the lines of a CSV file; problems of reading come out as `DataError`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        _raise_bad_csv(path, "is not UTF-8 text", error)
    except (OSError, csv.Error) as error:
        _raise_bad_csv(path, f"cannot be read ({error})", error)


def _delimiter(path: Path) -> str:
    with _opened(path) as lines:
        first = next(lines, "")
    return max((",", ";", "\t"), key=first.count)


def _columns(cells: Sequence[str]) -> list[str]:
    return [text.strip().lower() for text in cells]


def _raise_bad_csv(path: Path, problem: str, error: BaseException | None = None) -> NoReturn:
    raise DataError(
        f"{path} {problem}. A table is a CSV file in UTF-8 with a header line.",
        remedy="Save it again as CSV (UTF-8).",
        code="bad_csv",
    ) from error
