"""The user's own models: added by name from a folder, a packed file or a hub, checked before and after.

They stand in DERMLENS_MODELS, or `dermlens/models` in the XDG data folder, one bundle folder each.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from dermlens.bundle.bundle import (
    MODELS_DIR,
    Bundle,
    embedded_models,
    find_bundle,
    load_bundle,
    user_models,
    user_models_dir,
)
from dermlens.bundle.card import check_card
from dermlens.bundle.hub import SCHEME, fetch
from dermlens.bundle.packing import copy_files, temporary_folder, unpack
from dermlens.errors import BundleError, StorageError, UsageError
from dermlens.files import replace_folder

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


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
        show: called with the checked bundle before it is kept; what it raises leaves all as it was.

    Raises:
        BundleError: there is no sound bundle, or it has another digest. UsageError: the name is taken or no name.
        StorageError: it cannot be written. MissingExtraError: `hf://` without the extra `hub`.
    """
    home = user_models_dir()
    try:
        with temporary_folder(home) as holder:
            staged = Path(holder) / "bundle"
            staged.mkdir()
            bundle = _stage(source, staged)
            check_card(bundle)
            _check_digest(bundle, sha256)
            target = home / _checked_name(name or bundle.name)
            _check_place(target, bundle, replace)
            if show is not None:
                show(bundle)
            if not target.exists() or load_or_none(target) is None or replace:
                replace_folder(staged, target)
    except OSError as error:
        raise StorageError(
            f"The model could not be added to {home}: {error.strerror or error}.",
            remedy="Free some space, or name another folder in DERMLENS_MODELS.",
        ) from error
    return load_bundle(target)


def remove_model(name: str) -> Path:
    """Delete a model that was added and return where it stood.

    Raises:
        UsageError: there is none of that name among the added ones. StorageError: it cannot be deleted.
    """
    if name not in user_models():
        raise UsageError(
            f"No added model is called {name!r}. Added are: {', '.join(user_models()) or 'none'}.",
            remedy="Run `dermlens models` for the names; embedded models stay.",
            code="unknown_model",
        )
    target = user_models_dir() / name
    try:
        shutil.rmtree(target)
    except OSError as error:
        raise StorageError(
            f"{target} could not be deleted: {error.strerror or error}.", remedy="Delete that folder yourself."
        ) from error
    return target


def load_or_none(folder: Path) -> Bundle | None:
    """Return the bundle of a folder, None where there is no sound one that can be shown."""
    try:
        bundle = load_bundle(folder)
        check_card(bundle)
    except BundleError:
        return None
    return bundle


def _stage(source: str, folder: Path) -> Bundle:
    """Copy the bundle's own files into an empty folder and load it from there."""
    if source.startswith(SCHEME):
        copy_files(load_bundle(fetch(source)), folder)
        return load_bundle(folder)
    path = Path(source)
    if path.is_file() and path.name != "bundle.json":
        return unpack(path, folder)
    copy_files(load_bundle(find_bundle(path.parent if path.is_file() else source)), folder)
    return load_bundle(folder)


def _check_digest(bundle: Bundle, sha256: str | None) -> None:
    if sha256 is not None and bundle.sha256 != sha256.strip().lower():
        raise BundleError(
            f"The model has SHA-256 {bundle.sha256}; {sha256} was asked for. It was not added.",
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
            f"{target} stands there already and is no model.",
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
