"""Images that are decoded once: the copies from which fresh views start, in a memory-mapped file.

A training on fresh views draws each image some ten times, and a phone's photograph takes longer to decode than to
augment. So the first draw of an image keeps its copy, and the later ones only copy bytes. The file is filled as images
are drawn, and one that was begun is gone on with; a checksum tells what was written whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.training.pipeline import larger, larger_copy

MOST_OF_FREE = 0.5  # a cache that would take more of the free space is not made: the rest of a run needs some as well


def decoded(
    folder: Path, records: Sequence[Record], hashes: Sequence[str], spec: InputSpec, console: Console
) -> Callable[[int], np.ndarray]:
    """Return row -> `larger_copy` of that record, uint8 (side, side, 3), decoded at its first call alone.

    The function may be called by several threads at once. Without the space for `pixels.npy` in `folder`, or where that
    cannot be written, it decodes at every call, and `console` says so.

    Args:
        hashes: content hash of each file; with frame aspects and `spec` they say whether an earlier file holds.
    """

    def anew(row: int) -> np.ndarray:
        return larger_copy(records[row], spec)

    side = larger(spec).size_px
    try:
        opened = _open(folder, _key(records, hashes, spec), (len(records), side, side, 3))
    except OSError as error:
        console.print(f"Images are decoded in every epoch: {error.strerror or error}.", highlight=False, soft_wrap=True)
        return anew
    pixels, sums = opened
    checked = np.zeros(len(records), bool)

    def once(row: int) -> np.ndarray:
        if not checked[row]:
            if sums[row] != zlib.crc32(pixels[row]):
                pixels[row] = anew(row)
                sums[row] = zlib.crc32(pixels[row])
            checked[row] = True
        return np.asarray(pixels[row])

    return once


def _key(records: Sequence[Record], hashes: Sequence[str], spec: InputSpec) -> str:
    facts = (list(hashes), [record.frame_aspect for record in records], larger(spec).fingerprint())
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _open(folder: Path, key: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mapped pixels, uint8 of that shape, and the checksum of each row, uint32 (n,), 0 where nothing is yet;
    those of an earlier file if its key is the same.

    Raises:
        OSError: no space, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, marks, noted = folder / "pixels.npy", folder / "sums.npy", folder / "pixels.json"
    if (earlier := _earlier(data, marks, noted, key)) is not None:
        return earlier
    noted.unlink(missing_ok=True)  # first, so that no older key can vouch for the new file
    data.unlink(missing_ok=True)
    need, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if need > MOST_OF_FREE * free:
        raise OSError(f"a copy of each would take {need / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free")
    sums = np.lib.format.open_memmap(marks, mode="w+", dtype=np.uint32, shape=shape[:1])
    pixels = np.lib.format.open_memmap(data, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # take the space now: a mapped file on a disk that fills up kills the process
        with data.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, data.stat().st_size)
    noted.write_text(json.dumps({"key": key}), encoding="utf-8")
    return pixels, sums


def _earlier(data: Path, marks: Path, noted: Path, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what an earlier run has left; None where that is of another key, incomplete or damaged."""
    try:
        if json.loads(noted.read_text(encoding="utf-8"))["key"] != key:
            return None
        return np.load(data, mmap_mode="r+"), np.load(marks, mmap_mode="r+")
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
