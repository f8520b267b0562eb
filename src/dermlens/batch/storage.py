"""Files anywhere: local paths as they are, URLs through fsspec and whatever plug-in the user has installed for them."""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from dermlens.errors import DermlensError, ImageError, MissingExtraError, StorageError, UsageError

UNREACHABLE_AFTER = 64
PERMANENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_GLOB = frozenset("*?[")


def _is_temporary(error: BaseException) -> bool:
    """Whether a second try may help; plug-ins raise errors of their own."""
    return isinstance(error, Exception) and not isinstance(error, (*PERMANENT, DermlensError))


RETRYING = Retrying(
    retry=retry_if_exception(_is_temporary),
    wait=wait_exponential(multiplier=0.2, exp_base=5),  # 0.2, 1 and 5 s
    stop=stop_after_attempt(4),
    reraise=True,
)


def is_url(path: str) -> bool:
    """Whether fsspec has to open it; `file://` counts as local after `plain`."""
    return "://" in path


def plain(path: str) -> str:
    """Return a `file://` URL as a local path, everything else as it is."""
    return path.removeprefix("file://") if path.startswith("file:///") else path


def filesystem(path: str) -> tuple[Any, str]:
    """Return (fsspec file system, path in it).

    Raises:
        MissingExtraError: the plug-in for this protocol is not installed.
        UsageError: fsspec does not know the protocol, or the URL is a chain of URLs.
    """
    if not is_url(path):
        return LocalFileSystem(), path
    protocol = path.partition("://")[0]
    if "::" in path:
        raise UsageError(f"{path} is a chain of URLs. One URL is allowed.", remedy="Name the tar file itself.")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        what = f"{protocol}:// needs a plug-in of fsspec that is not installed: {error}."
        remedy = "Install it (s3: s3fs, gs: gcsfs, az: adlfs, http: aiohttp) beside dermlens."
        raise MissingExtraError(what, remedy=remedy) from error
    except ValueError as error:
        remedy = "Use a local path, file://, s3://, gs://, az:// or another of fsspec's protocols."
        raise UsageError(f"{protocol}:// is not a protocol that fsspec knows.", remedy=remedy) from error
    fs, inside = url_to_fs(path)
    return fs, str(inside)


@contextmanager
def reaching(path: str) -> Iterator[None]:
    """Turn whatever a file system or plug-in raises into a UsageError (code `unreachable`) that names the path."""
    try:
        yield
    except DermlensError:
        raise
    except Exception as error:  # plug-ins raise errors of their own
        why = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
        what = f"{getattr(error, 'filename', None) or path} cannot be read: {why}."
        remedy = "Check the path, that you may read it, and for a URL the network and your credentials."
        raise UsageError(what, remedy=remedy, code="unreachable") from error


def open_stream(path: str) -> BinaryIO:
    """Open a local path or URL for reading in binary; raises what the file system raises."""
    fs, inside = filesystem(path)
    return cast(BinaryIO, fs.open(inside, "rb"))


def size_bytes(path: str) -> int | None:
    """Return the size of a file, None where it is not there or says nothing."""
    with reaching(path), suppress(FileNotFoundError, NotADirectoryError):
        fs, inside = filesystem(path)
        size = fs.size(inside)
        return None if size is None else int(size)
    return None


def exists(path: str) -> bool:
    """Whether there is a file or folder of that name."""
    if not is_url(path):
        return os.path.exists(path)
    with reaching(path), suppress(FileNotFoundError, NotADirectoryError):
        fs, inside = filesystem(path)
        return fs.isdir(inside) or bool(fs.info(inside))  # `exists` takes any failure for a missing file
    return False


def is_folder(path: str) -> bool:
    """Whether it is a folder; an object store has one where something is below it."""
    with reaching(path):
        fs, inside = filesystem(path)
        return bool(fs.isdir(inside))


def join(folder: str, name: str) -> str:
    """Return a name below a folder; an absolute name or a URL stays what it is."""
    if is_url(name) or os.path.isabs(name):
        return plain(name)
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def parent(path: str) -> str:
    """Return the folder of a file."""
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path)


def walk(folder: str, linked: list[str]) -> Iterator[str]:
    """Yield the visible files below a folder, sorted within each folder, its own files before its subfolders'.

    Links to folders are not followed, as they may lead in a circle; they are appended to `linked`.
    """

    def stop(error: OSError) -> None:
        raise error

    with reaching(folder):
        if is_url(folder):
            yield from _walk_remote(*filesystem(folder))
            return
        for base, folders, names in os.walk(folder, onerror=stop):
            folders[:] = sorted(name for name in folders if not _hidden(name))
            linked += (path for name in folders if os.path.islink(path := os.path.join(base, name)))
            yield from (os.path.join(base, name) for name in sorted(names) if not _hidden(name))


def _walk_remote(fs: Any, folder: str) -> Iterator[str]:
    entries = sorted(fs.ls(folder, detail=True), key=lambda entry: str(entry["name"]))
    below = [e for e in entries if e["name"].rstrip("/") != folder.rstrip("/") and not _hidden(_last(e["name"]))]
    yield from (fs.unstrip_protocol(entry["name"]) for entry in below if entry["type"] != "directory")
    for entry in below:
        if entry["type"] == "directory":
            yield from _walk_remote(fs, entry["name"])


def is_pattern(path: str) -> bool:
    """Whether a path is a glob; a local file of that very name is no pattern."""
    return bool(_GLOB & set(path)) and (is_url(path) or not os.path.lexists(path))


def matches(pattern: str) -> list[str]:
    """Return the visible files and folders that a glob matches, sorted; `**` goes down any number of folders."""
    with reaching(pattern):
        if not is_url(pattern):
            found = glob.glob(pattern, recursive=True)
        else:
            fs, inside = filesystem(pattern)
            found = [str(fs.unstrip_protocol(path)) for path in fs.glob(inside)]
    return sorted(path for path in found if not _hidden(_last(path)) and "/__MACOSX/" not in path)


class Fetcher:
    """Reads images from URLs, in several threads at a time if you like.

    A missing file is that image's error. One that cannot be reached is tried again; when `UNREACHABLE_AFTER` in a row
    cannot, the storage is gone, and the job stops rather than write an error for each image that is left.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._failures = 0
        self._lock = threading.Lock()

    def fetch(self, url: str) -> bytes | ImageError:
        """Return the bytes of an image, or why there are none.

        Raises:
            StorageError: too many in a row could not be reached.
        """
        try:
            fs, inside = filesystem(url)
            data = bytes(RETRYING(fs.cat_file, inside, start=0, end=self._max_bytes + 1))
        except (FileNotFoundError, NotADirectoryError):
            return ImageError(f"The image {url!r} does not exist.", remedy="Check the URL.", code="not_found")
        except (IsADirectoryError, MissingExtraError, UsageError, PermissionError) as error:
            return ImageError(f"The image {url!r} cannot be opened: {error}.", remedy="Check it.", code="unreadable")
        except Exception as error:  # plug-ins raise errors of their own
            self._count_failure(url, error)
            what = f"The image {url!r} could not be fetched: {type(error).__name__}: {error}."
            remedy = "Check the URL and the network, and ask again for this image."
            return ImageError(what, remedy=remedy, code="unreachable")
        self._failures = 0
        if len(data) > self._max_bytes:
            what = f"The image {url!r} has more than {self._max_bytes:,} bytes, the largest allowed."
            remedy = "Save a smaller copy, or raise max_bytes if you trust the file."
            return ImageError(what, remedy=remedy, code="too_many_bytes")
        return data

    def _count_failure(self, url: str, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= UNREACHABLE_AFTER:
                what = f"{UNREACHABLE_AFTER} images in a row could not be fetched, the last {url!r}: {error}."
                remedy = "When the storage can be reached again, add --resume to continue."
                raise StorageError(what, remedy=remedy, code="unreachable")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
