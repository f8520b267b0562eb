"""Results kept between audits under a key of all that they follow from: what has not changed is not computed again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from dermlens.audit.facts import ImageFacts
from dermlens.data.records import Record

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
