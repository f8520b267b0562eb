"""Facts of images kept between audits, by content: a second audit reads and hashes every file and decodes none.

One `.npz` without pickles; a cache that is damaged or of another version is as good as none.

Results kept between audits under a key of all that they follow from: what has not changed is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dermlens.audit.facts import ImageFacts, Look
from dermlens.data.framing import PIXEL_PATH_VERSION
from dermlens.data.records import Record

VERSION = f"1-{PIXEL_PATH_VERSION}"
"""Raise the first number when `facts.py` would say something else of the same bytes."""

_HEAD = ("sha256", "format", "quantisation")
_SIZES = ("width_px", "height_px", "size_bytes")
_LOOKS = ("brightness", "contrast", "sharpness", "dark_share", "bright_share", "dark_corners")


def load_facts(path: Path) -> dict[str, ImageFacts]:
    """Return the facts in a cache by SHA-256; empty where there is none that can be used."""
    try:
        with np.load(path, allow_pickle=False) as file:
            table = {name: file[name] for name in file.files}
        if str(table["version"]) != VERSION:
            return {}
        return {str(sha): _fact(table, row) for row, sha in enumerate(table["sha256"])}
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        return {}


def save_facts(path: Path, facts: Sequence[ImageFacts]) -> None:
    """Write the facts of all readable files; a disk that is full costs the cache and nothing else."""
    known = list({fact.sha256: fact for fact in facts if fact.look is not None}.values())
    looks = [fact.look for fact in known if fact.look is not None]
    heads: dict[str, Any] = {name: np.array([getattr(fact, name) for fact in known], np.str_) for name in _HEAD}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            unfinished,
            version=np.array(VERSION),
            sizes=np.array([[getattr(fact, name) for name in _SIZES] for fact in known], np.int64),
            looks=np.array([[*(getattr(look, n) for n in _LOOKS), *look.border_rgb] for look in looks], np.float64),
            thumb=np.array([fact.thumb for fact in known], np.uint8),
            codes=np.array([fact.codes for fact in known], np.uint64),
            **heads,
        )
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()


def _fact(table: Mapping[str, np.ndarray], row: int) -> ImageFacts:
    sha, kind, quantisation = (str(table[name][row]) for name in _HEAD)
    width, height, size = (int(value) for value in table["sizes"][row])
    brightness, contrast, sharpness, dark, bright, corners, *border = (float(value) for value in table["looks"][row])
    look = Look(brightness, contrast, sharpness, dark, bright, int(corners), (border[0], border[1], border[2]))
    return ImageFacts(
        sha, None, kind, width, height, size, quantisation, look, table["thumb"][row], table["codes"][row]
    )


T = TypeVar("T")


def contents_key(records: Sequence[Record], facts: Sequence[ImageFacts], *further: object) -> str:
    """Return 64 hex digits that change with any file, name, label, group or frame, with the order, and with `further`.

    Args:
        records, facts: n images; `further` has a repr that says all.
    """
    digest = hashlib.sha256(repr(further).encode())
    for r, fact in zip(records, facts, strict=True):
        row = (fact.sha256, r.image, r.diagnosis, r.lesion_id, r.patient_id, r.isic_id, r.frame_aspect)
        digest.update(repr(row).encode())
    return digest.hexdigest()


def kept(
    folder: Path | None,
    name: str,
    key: str,
    compute: Callable[[], T],
    *,
    pack: Callable[[T], Any],
    unpack: Callable[[Any], T],
) -> T:
    """Return what was kept as `name` under `key`, else compute and keep it; without a folder always compute.

    Args:
        pack, unpack: between the result and plain values for JSON.
    """
    path = folder / f"{name}.json" if folder is not None else None
    if path is not None:
        with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["key"] == key:
                return unpack(content["result"])
    result = compute()
    if path is not None:
        _write(path, {"key": key, "result": pack(result)})
    return result


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write whole or not at all; a disk that is full costs the cache and nothing else."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(content), encoding="utf-8")
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
