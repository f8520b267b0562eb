"""Files and folders that are replaced whole or not at all, SHA-256 digests, and the one cache in the user's folder."""

from __future__ import annotations

import csv
import hashlib
import os
import secrets
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

CACHE_MAX_BYTES = 2_000_000_000  # of all kept values together; the oldest in use go first
_CACHE_NAME, _CACHE_FOLDERS = "cache.sqlite", ("embedder",)  # all that lies in the cache folder
_COLUMNS = "area TEXT, key TEXT, value BLOB, bytes INTEGER, used REAL, PRIMARY KEY (area, key)"
_KEYS_AT_ONCE = 500  # SQLite's oldest limit on the parameters of a statement is 999


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path, ending: str | None = None) -> Iterator[Path]:
    """Give a hidden path beside `path` to write to; when all went well it takes the place of `path`, with its mode.

    A failure, a kill or a full disk leaves what was there before. Two writers at once never share a hidden path.

    Args:
        ending: of the hidden path, where somebody reads every file with the ending of `path`, which it has by default.

    Raises:
        OSError: no space or no permission.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary = path.with_name(
        f".{path.stem[:40]}-{secrets.token_hex(4)}-new{path.suffix if ending is None else ending}"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file (UTF-8) whole; one that holds the same text is not touched. Raises OSError."""
    with suppress(OSError, ValueError):
        if path.read_text(encoding="utf-8") == text:
            return
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Replace a table whole; bytes of a file name that are no text are escaped. Raises OSError."""
    with (
        atomic_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows(rows)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder` to fill; when all went well it takes the place of `folder`.

    Raises:
        OSError: no space or no permission; what was there before is untouched.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Move a folder into the place of another, which is removed only when that went well.

    Raises:
        OSError: the older folder is where it was or, if it could not be moved back, beside it as `.old-...`.
    """
    if not folder.exists():
        os.replace(new, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent)) / folder.name
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(old, folder)
        old.parent.rmdir()
        raise
    shutil.rmtree(old.parent, ignore_errors=True)


def cache_folder() -> Path:
    """Return where dermlens keeps what it can make again: DERMLENS_CACHE, or its folder in the user's cache."""
    own = os.environ.get("DERMLENS_CACHE")
    if own:
        return Path(own).absolute()
    from platformdirs import user_cache_path

    try:
        return user_cache_path("dermlens", appauthor=False)
    except RuntimeError:  # nobody knows this user's home
        return Path(tempfile.gettempdir(), f"dermlens-{os.getuid() if hasattr(os, 'getuid') else 'cache'}")


def cache_sizes() -> dict[str, tuple[int, int]]:
    """Return how many values or files each part of the cache holds, and their size in bytes."""
    sizes: dict[str, tuple[int, int]] = {}
    path = cache_folder() / _CACHE_NAME
    with (
        suppress(OSError, sqlite3.Error),
        closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as store,
    ):
        rows = store.execute("SELECT area, count(*), sum(bytes) FROM kept GROUP BY area ORDER BY area")
        sizes.update({area: (count, size) for area, count, size in rows})
    for name in _CACHE_FOLDERS:
        files = [file for file in (cache_folder() / name).rglob("*") if file.is_file()]
        if files:
            sizes[name] = len(files), sum(file.stat().st_size for file in files)
    return sizes


def clear_cache() -> None:
    """Remove all that dermlens keeps in its cache folder. Raises OSError."""
    for suffix in ("", "-journal"):
        (cache_folder() / (_CACHE_NAME + suffix)).unlink(missing_ok=True)
    for name in _CACHE_FOLDERS:
        if (cache_folder() / name).exists():
            shutil.rmtree(cache_folder() / name)


class Cache:
    """Numbers that can be computed again, kept by key in one SQLite file below the user's cache folder.

    No cache is ever a reason to fail: one that is full, locked, damaged or not allowed answers with nothing and keeps
    nothing. Several processes may use it at once.

    Args:
        area: what the values are, with the version of their maker ("audit-facts-2"); keys of other areas are apart.
        folder: where `cache.sqlite` lies; `cache_folder()` when None.
        max_bytes: of all values of all areas; those that were not used for longest are removed first.
    """

    def __init__(self, area: str, folder: Path | None = None, *, max_bytes: int = CACHE_MAX_BYTES) -> None:
        self.area = area
        self.path = (cache_folder() if folder is None else folder) / _CACHE_NAME
        self.max_bytes = max_bytes

    def load(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the values that are kept, by key; a key without one is left out."""
        wanted, found = list(keys), dict[str, bytes]()

        def read(store: sqlite3.Connection) -> None:
            for start in range(0, len(wanted), _KEYS_AT_ONCE):
                part = wanted[start : start + _KEYS_AT_ONCE]
                where = f"area = ? AND key IN ({','.join('?' * len(part))})"
                found.update(store.execute(f"SELECT key, value FROM kept WHERE {where}", [self.area, *part]))

        def mark(store: sqlite3.Connection) -> None:
            used = [(time.time(), self.area, key) for key in found]
            store.executemany("UPDATE kept SET used = ? WHERE area = ? AND key = ?", used)

        self._do(read)
        self._do(mark, timeout_s=0.5)  # apart: where nothing can be written, reading goes on
        return found

    def save(self, values: Mapping[str, bytes]) -> None:
        """Keep values by key; an older value of the same key is replaced."""

        def write(store: sqlite3.Connection) -> None:
            rows = [(self.area, key, value, len(value), time.time()) for key, value in values.items()]
            store.executemany("REPLACE INTO kept VALUES (?, ?, ?, ?, ?)", rows)
            store.execute(
                "DELETE FROM kept WHERE rowid IN (SELECT rowid FROM (SELECT rowid, sum(bytes) OVER "
                "(ORDER BY used DESC, rowid DESC) AS so_far FROM kept) WHERE so_far > ?)",
                [self.max_bytes],
            )

        self._do(write)

    def _do(self, work: Callable[[sqlite3.Connection], None], timeout_s: float = 10) -> None:
        """Work in a transaction; what fails in it is forgotten, and a damaged or foreign file is removed."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=timeout_s)) as store, store:
                store.execute(f"CREATE TABLE IF NOT EXISTS kept ({_COLUMNS})")
                work(store)
        except OSError:
            pass
        except sqlite3.DatabaseError as error:
            if not isinstance(error, sqlite3.OperationalError) or "column" in str(error):
                self.path.unlink(missing_ok=True)
