"""What an audit has computed, kept by content in the user's cache: a second audit of the same pictures takes seconds.

Numbers only: no thumbnail, nothing from which a picture could be seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import msgspec

from dermlens.data.records import Record
from dermlens.files import Cache
from dermlens.reporting.progress import Advance

_CHUNK = 1024  # results that are kept together: what an interrupted audit loses at most

T = TypeVar("T")


class Store(Generic[T]):
    """Values of one type in one area of the user's cache, see `files.Cache`.

    Args:
        area: names the values and the version of their maker.
        kind: their type, which `msgspec` can write and read; a value of another type counts as missing.
        enabled: False loads and saves nothing.
    """

    def __init__(self, area: str, kind: Any, *, enabled: bool = True) -> None:
        self._cache, self._enabled = Cache(f"audit {area}"), enabled
        self._decoder = msgspec.msgpack.Decoder(kind)

    def load(self, keys: Iterable[str]) -> dict[str, T]:
        """Return the kept values by key; a key without one is left out."""
        found: dict[str, T] = {}
        for key, value in self._cache.load(keys).items() if self._enabled else ():
            with suppress(msgspec.MsgspecError):
                found[key] = self._decoder.decode(value)
        return found

    def save(self, values: Mapping[str, T]) -> None:
        """Keep values by key."""
        if self._enabled and values:
            self._cache.save({key: msgspec.msgpack.encode(value) for key, value in values.items()})

    def get(self, key: str, compute: Callable[[], T]) -> T:
        """Return the kept value, else compute and keep it."""
        found = self.load([key])
        if key not in found:
            found[key] = compute()
            self.save(found)
        return found[key]


def for_each_content(
    keys: Sequence[str],
    store: Store[T],
    compute: Callable[[list[int]], Iterable[T | None]],
    progress: Advance | None = None,
) -> dict[str, T]:
    """Return a value for each different key: the kept one, else computed once from the first place that has the key.

    Args:
        keys: n keys, "" where there is nothing to compute from.
        compute: gives a value for each of some places in `keys`, in order; None where it cannot.
    """
    first: dict[str, int] = {}
    for place, key in enumerate(keys):
        if key:
            first.setdefault(key, place)
    found = store.load(first)
    missing = [place for key, place in first.items() if key not in found]
    if progress is not None:
        progress(len(found))
    for start in range(0, len(missing), _CHUNK):
        part = missing[start : start + _CHUNK]
        new: dict[str, T] = {}
        for place, value in zip(part, compute(part), strict=True):
            if value is not None:
                new[keys[place]] = value
            if progress is not None:
                progress(1)
        store.save(new)
        found |= new
    return found


def contents_key(records: Sequence[Record], hashes: Sequence[str | None], *further: object) -> str:
    """Return 64 hex digits that change with any file, name, label, group or frame, with the order, and with `further`.

    Args:
        records, hashes: n images.
        further: each has a repr that says all.
    """
    digest = hashlib.sha256(repr(further).encode())
    for r, content in zip(records, hashes, strict=True):
        row = (content, r.image, r.diagnosis, r.lesion_id, r.patient_id, r.isic_id, r.frame_aspect)
        digest.update(repr(row).encode())
    return digest.hexdigest()
