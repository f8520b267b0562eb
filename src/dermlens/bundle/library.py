"""The user's own models: found, added and removed by name, and handed on as one file.

They are in DERMLENS_MODELS, or `dermlens/models` in the user's data folder, one bundle folder each. A package is a zip
without compression, in the order of names and without times: the same byte for byte for the same bundle, so that its
checksum means something. What is unpacked comes from strangers: only plain names, no links, bounded sizes, and every
file against its SHA-256.
"""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from dermlens.bundle.bundle import (
    CARD,
    MODELS_DIR,
    Bundle,
    check_file_name,
    embedded_models,
    find_bundle,
    load_bundle,
    user_models,
    user_models_dir,
)
from dermlens.bundle.card import damaged
from dermlens.bundle.hub import SCHEME, fetch
from dermlens.errors import BundleError, UsageError, os_errors
from dermlens.files import atomic_file, replace_folder
from dermlens.text import nearest

ENDING = ".dermlens.zip"
MAX_FILES, MAX_BYTES = 32, 2_000_000_000  # of all files together: the largest network, V2-L, takes 0.5 GB
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_TIME = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20


def known_digests() -> dict[str, str]:
    """Return SHA-256 -> where it is known from: the models that came with dermlens, and those added before."""
    found = {}
    for name in user_models():
        try:
            found[load_bundle(user_models_dir() / name).sha256] = f"added before as {name!r}"
        except BundleError:
            continue
    for name in embedded_models():
        found[load_bundle(MODELS_DIR / name).sha256] = f"the model {name!r} that came with dermlens"
    return found


def add_model(
    source: str,
    *,
    name: str | None = None,
    sha256: str | None = None,
    replace: bool = False,
    show: Callable[[Bundle], None] | None = None,
) -> Bundle:
    """Copy a model into the user's folder, so that `--model NAME` finds it, and return it from there.

    Args:
        source: a bundle or run folder, a file of `dermlens package`, or `hf://owner/name[@revision]`.
        name: what to call it; the bundle's own name when None.
        sha256: the digest that it must have.
        replace: put it in the place of another model of that name.
        show: called with the checked bundle before it is added; what it raises leaves all as it was.

    Raises:
        BundleError: there is no sound bundle, or it has another digest. UsageError: the name is taken or no name.
        StorageError: it cannot be written. MissingExtraError: `hf://` without the extra `hub`.
    """
    home = user_models_dir()
    with os_errors(
        f"The model could not be added to {home}", "Free some space, or name another folder in DERMLENS_MODELS."
    ):
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=home) as holder:
            staged = Path(holder) / "bundle"
            staged.mkdir()
            bundle = _stage(source, staged)
            _check_names(bundle)
            _check_digest(bundle, sha256)
            target = home / _checked_name(name or bundle.name)
            _check_place(target, bundle, replace)
            if show is not None:
                show(bundle)
            if not target.exists() or load_or_none(target) is None or replace:
                replace_folder(staged, target)
    return load_bundle(target)


def remove_model(name: str) -> Path:
    """Delete a model that was added and return where it was.

    Raises:
        UsageError: there is none of that name among the added ones. StorageError: it cannot be deleted.
    """
    if name not in user_models():
        raise UsageError(
            f"No added model is called {name!r}.{nearest(name, user_models())} Added are: "
            f"{', '.join(user_models()) or 'none'}.",
            remedy="Run `dermlens models` for the names; embedded models stay.",
            code="unknown_model",
        )
    target = user_models_dir() / name
    with os_errors(f"{target} could not be deleted", "Delete that folder yourself."):
        shutil.rmtree(target)
    return target


def load_or_none(folder: Path) -> Bundle | None:
    """Return the bundle of a folder, None where there is no sound one that can be shown."""
    try:
        bundle = load_bundle(folder)
        _check_names(bundle)
    except BundleError:
        return None
    return bundle


def _check_names(bundle: Bundle) -> None:
    """Refuse a stranger's card with a name that a terminal cannot print as it is."""
    card = bundle.card
    for name in (card.name, card.version, *bundle.codes, *bundle.names):
        if not name.isprintable():
            raise damaged(f"{bundle.folder / CARD}: {name!r} is no name")


def _stage(source: str, folder: Path) -> Bundle:
    """Copy the bundle's own files into an empty folder and load it from there."""
    if source.startswith(SCHEME):
        load_bundle(fetch(source)).copy_to(folder)
        return load_bundle(folder)
    path = Path(source)
    if path.is_file() and path.name != "bundle.json":
        return unpack(path, folder)
    load_bundle(find_bundle(path.parent if path.is_file() else source)).copy_to(folder)
    return load_bundle(folder)


def _check_digest(bundle: Bundle, sha256: str | None) -> None:
    if sha256 is not None and bundle.sha256 != sha256.strip().lower():
        raise BundleError(
            f"The model has the SHA-256 {bundle.sha256}, not {sha256} as asked for. It was not added.",
            remedy="Ask its maker which is right; do not use it before.",
            code="bundle_digest",
        )


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"A model cannot be called {name!r}. Allowed are letters, digits, '.', '_' and '-', 64 at most.",
            remedy="Give it another name with --name.",
            code="model_name",
        )
    if name in embedded_models():
        raise UsageError(
            f"{name!r} is the name of a model that came with dermlens.",
            remedy="Give it another name with --name.",
            code="model_name",
        )
    return name


def _check_place(target: Path, bundle: Bundle, replace: bool) -> None:
    if target.exists() and not (target / "bundle.json").is_file():
        raise UsageError(
            f"{target} exists already and is no model.",
            remedy="Give another name with --name, or name another folder in DERMLENS_MODELS.",
            code="model_name",
        )
    there = load_or_none(target) if target.exists() else None
    if there is not None and there.sha256 != bundle.sha256 and not replace:
        raise UsageError(
            f"Another model is called {target.name!r} already ({there.version}, SHA-256 {there.sha256[:12]}…).",
            remedy="Give this one another name with --name, or add --replace.",
            code="model_name",
        )


def pack(bundle: Bundle, path: Path) -> None:
    """Write a bundle as one file.

    Raises:
        UsageError: something else than a package is there. StorageError: no space or no permission; an earlier
        file stays.
    """
    if path.exists() and not zipfile.is_zipfile(path):
        raise UsageError(f"{path} exists already and is no package.", remedy="Choose another --out.")
    refusal = os_errors(f"The package {path} could not be written", "Choose another --out, or free some space.")
    with refusal, atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
        for name in bundle.file_names():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            with (bundle.folder / name).open("rb") as source, file.open(entry, "w") as target:
                shutil.copyfileobj(source, target, _CHUNK)


def unpack(path: Path, folder: Path) -> Bundle:
    """Unpack a file of `pack` into an empty folder and load the bundle, every file checked.

    Raises:
        BundleError: it is no such file, or holds what a package does not hold. StorageError: it cannot be written.
    """
    try:
        with (
            os_errors(f"{path} could not be unpacked", "Check the path, or free some space."),
            zipfile.ZipFile(path) as file,
        ):
            entries = file.infolist()
            _check_entries(path, entries)
            left = MAX_BYTES
            for entry in entries:
                left -= _extract(file, entry, folder / entry.filename, left)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise _refusal(path, f"it is damaged or no zip file ({error})") from error
    bundle = load_bundle(folder)
    extra = {entry.filename for entry in entries} - set(bundle.file_names())
    if extra:
        raise _refusal(path, f"it holds {sorted(extra)[0]!r}, which its card does not list")
    return bundle


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    if len(names) > MAX_FILES or len(set(names)) < len(names):
        raise _refusal(path, f"it holds {len(names)} files with {len(set(names))} different names")
    if CARD not in names:
        raise _refusal(path, f"it holds no {CARD}")
    for entry in entries:
        check_file_name(entry.filename)
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


def _refusal(path: Path, why: str) -> BundleError:
    return BundleError(
        f"{path} is no package of dermlens: {why}.",
        remedy="Make one with `dermlens package RUN`, or give a bundle folder.",
        code="package_damaged",
    )
