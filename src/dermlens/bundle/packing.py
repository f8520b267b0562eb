"""A bundle as one file: a zip that is the same byte for byte for the same bundle, and its careful unpacking.

Stored without compression, in the order of names and without times, so that a checksum of the file means something.
What is unpacked comes from strangers: only plain names, no links, bounded sizes, and every file against its SHA-256.
"""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dermlens.bundle.bundle import Bundle, load_bundle
from dermlens.errors import BundleError, StorageError, UsageError

ENDING = ".dermlens.zip"
CARD = "bundle.json"
MAX_FILES, MAX_BYTES = 32, 2_000_000_000  # of all files together: the largest network, V2-L, takes 0.5 GB
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_TIME = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20


def file_names(bundle: Bundle) -> list[str]:
    """Return the names of all files of a bundle, sorted, its card among them.

    Raises:
        BundleError: a name that is more than a name.
    """
    names = sorted({CARD, *bundle.card["files"]})
    for name in names:
        _check_name(name)
    return names


def copy_files(bundle: Bundle, folder: Path) -> None:
    """Copy the files that the bundle's card lists, and no others, into a folder; links are read, not copied."""
    for name in file_names(bundle):
        shutil.copyfile(bundle.folder / name, folder / name)


def pack(bundle: Bundle, path: Path) -> None:
    """Write a bundle as one file.

    Raises:
        UsageError: something else than a package stands there. StorageError: no space or no permission; an earlier
        file stays.
    """
    if path.exists() and not zipfile.is_zipfile(path):
        raise UsageError(f"{path} stands there already and is no package.", remedy="Choose another --out.")
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
            for name in file_names(bundle):
                entry = zipfile.ZipInfo(name, _TIME)
                entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                with (bundle.folder / name).open("rb") as source, file.open(entry, "w") as target:
                    shutil.copyfileobj(source, target, _CHUNK)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"The package {path} could not be written: {error.strerror or error}.",
            remedy="Choose another --out, or free some space.",
        ) from error


def unpack(path: Path, folder: Path) -> Bundle:
    """Unpack a file of `pack` into an empty folder and load the bundle, every file checked.

    Raises:
        BundleError: it is no such file, or holds what a package does not hold. StorageError: it cannot be written.
    """
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            _check_entries(path, entries)
            left = MAX_BYTES
            for entry in entries:
                left -= _extract(file, entry, folder / entry.filename, left)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise _refusal(path, f"it is damaged or no zip file ({error})") from error
    except OSError as error:
        raise StorageError(
            f"{path} could not be unpacked: {error.strerror or error}.", remedy="Check the path, or free some space."
        ) from error
    bundle = load_bundle(folder)
    extra = {entry.filename for entry in entries} - set(file_names(bundle))
    if extra:
        raise _refusal(path, f"it holds {sorted(extra)[0]!r}, which its card does not list")
    return bundle


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    if len(names) > MAX_FILES or len(set(names)) < len(names):
        raise _refusal(path, f"it holds {len(names)} files, {len(set(names))} of different names")
    if CARD not in names:
        raise _refusal(path, f"it holds no {CARD}")
    for entry in entries:
        _check_name(entry.filename)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or entry.is_dir():
            raise _refusal(path, f"{entry.filename!r} is no plain file")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise _refusal(path, f"{entry.filename!r} is compressed or encrypted, which dermlens never writes")
    if sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise _refusal(path, f"it unpacks to more than {MAX_BYTES / 1e9:.0f} GB")


def _extract(file: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Write one entry and return its bytes; what the entry says of its own size is not believed."""
    written = 0
    with file.open(entry) as source, target.open("xb") as out:
        while part := source.read(_CHUNK):
            written += len(part)
            if written > left:
                raise zipfile.BadZipFile("it unpacks to more than it says")
            out.write(part)
    return written


def _check_name(name: str) -> None:
    if not _PLAIN.fullmatch(name):
        raise BundleError(
            f"The bundle holds a file called {name!r}. Allowed are names of letters, digits, '.', '_' and '-', "
            "without folders.",
            remedy="Do not use it: dermlens writes no such bundles.",
            code="bundle_unsafe",
        )


def _refusal(path: Path, why: str) -> BundleError:
    return BundleError(
        f"{path} is no package of dermlens: {why}.",
        remedy="Make one with `dermlens package RUN`, or give a bundle folder.",
        code="package_damaged",
    )


def signature(bundle: Bundle, known: Mapping[str, str]) -> dict[str, Any]:
    """Return what one should know before trusting a bundle that somebody else made, ready for JSON.

    Args:
        known: SHA-256 of bundles -> where they are known from.
    """
    card = bundle.card
    data, metrics = card["data"], card["metrics"]
    return {
        "name": bundle.name,
        "version": bundle.version,
        "sha256": bundle.sha256,
        "known": known.get(bundle.sha256),
        "scope": bundle.scope,
        "classes": list(bundle.codes),
        "licence": card["licence"],
        "trained_on": list(data["sources"]),
        "images": data["images"],
        "tested_on": {"images": metrics["n"], "lesions": metrics["n_lesions"]},
        "balanced_accuracy": metrics["balanced_accuracy"],
        "melanoma_auc": metrics["per_class"].get("MEL", {}).get("auc"),
        "leaky": bundle.leaky,
        "calibrated": bundle.calibrated,
        "knows_its_limits": bundle.trust.novelty is not None,
        "created": card["created"],
    }


def temporary_folder(beside: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a folder beside a place, from which a move there is one step."""
    beside.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".new-", dir=beside)
