"""Which records belong together: the same picture, the same lesion, the same patient. Union-find over shared facts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

from dermlens.data.records import Record, checked_hashes


def picture_groups(records: Sequence[Record], hashes: Sequence[str | None]) -> list[int]:
    """Number the pictures: n integers, equal where content hash or ISIC id is shared (also through a third file)."""
    checked_hashes(records, hashes)
    return _components([("hash", h), ("isic", r.isic_id)] for r, h in zip(records, hashes, strict=True))


def lesion_groups(records: Sequence[Record], hashes: Sequence[str | None]) -> list[int]:
    """Number the groups that a split must not cut: n integers, equal where records are connected.

    Two records are connected when they share lesion id, patient id, content hash or ISIC id, directly or through
    others. Numbers count up in the order of first appearance.
    """
    checked_hashes(records, hashes)
    return _components(
        [("hash", h), ("isic", r.isic_id), ("lesion", r.lesion_id), ("patient", r.patient_id)]
        for r, h in zip(records, hashes, strict=True)
    )


def lesions(records: Sequence[Record], hashes: Sequence[str | None]) -> list[int]:
    """Number the lesions: n integers, equal where lesion id, ISIC id or content hash is shared, also through others.

    This is the unit that figures and their intervals count: a record of which nothing is known is its own lesion.
    """
    checked_hashes(records, hashes)
    return _components(
        [("hash", h), ("isic", r.isic_id), ("lesion", r.lesion_id)] for r, h in zip(records, hashes, strict=True)
    )


def members(groups: Sequence[int]) -> list[list[int]]:
    """Return for each group number, in ascending order, the indices of its records."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        found[group].append(index)
    return [found[group] for group in sorted(found)]


def _components(facts: Iterable[list[tuple[str, Hashable]]]) -> list[int]:
    parents: list[int] = []
    first_with: dict[tuple[str, Hashable], int] = {}
    for index, keys in enumerate(facts):
        parents.append(index)
        for key in keys:
            if key[1] is not None:
                first = _root(parents, first_with.setdefault(key, index))
                parents[_root(parents, index)] = first
    numbers: dict[int, int] = {}
    return [numbers.setdefault(_root(parents, index), len(numbers)) for index in range(len(parents))]


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index
