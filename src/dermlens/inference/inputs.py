"""What a person names on the command line -> the list of images to answer for, in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from dermlens.data.images import IMAGE_EXTENSIONS, UNREAD_IMAGE_EXTENSIONS
from dermlens.errors import UsageError


@dataclass(frozen=True)
class Inputs:
    """Paths as they will be named in the answers, and one note for each thing a person should know."""

    paths: tuple[str, ...]
    notes: tuple[str, ...]


def expand(arguments: Iterable[str]) -> Inputs:
    """Return the images meant by files and folders.

    A file counts whatever its name, even a missing one: its answer carries the error. Folders are walked recursively in
    sorted order; below them files with an image extension count (those of formats that cannot be read too: their
    answer says so), the others are counted in a note.

    Raises:
        UsageError: there is no image at all.
    """
    paths: list[str] = []
    notes: list[str] = []
    for argument in arguments:
        if not os.path.isdir(argument):
            paths.append(argument)
            continue
        found, others = _walk(argument)
        paths += found
        if not found:
            notes.append(f"{argument}: no images in this folder.")
        if others:
            files = "files" if others > 1 else "file"
            notes.append(f"{argument}: {others} other {files} skipped (not an image extension).")
    if not paths:
        raise UsageError(
            f"No images found. {' '.join(notes)} Image files end in {', '.join(sorted(IMAGE_EXTENSIONS))}.",
            remedy="Name an image, or a folder that holds some.",
            code="no_images",
        )
    return Inputs(tuple(paths), tuple(notes))


def _walk(folder: str) -> tuple[list[str], int]:
    found, others = list[str](), 0
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in sorted(names):
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS | UNREAD_IMAGE_EXTENSIONS:
                found.append(os.path.join(base, name))
            else:
                others += 1
    return found, others
