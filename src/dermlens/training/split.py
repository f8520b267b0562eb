"""A stratified split into roles that never cuts through a lesion or a patient.

Groups are the connected components over lesion, patient, content hash and ISIC id (`data/records.py`). Classes are
dealt out from the rarest on, each by largest remainder. A group's place in the deal is a keyed hash of its content,
so the order of the records does not matter, and a new class moves no group of the others unless they share it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dermlens.data.records import ROLE_NAMES, Record, checked_hashes, lesion_groups, lesions, members
from dermlens.errors import DataError, UsageError

ROLES = ROLE_NAMES
"""train: learns; select: chooses the epoch; calibrate: fits temperature and rule; test: gives the number."""

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class _Group:
    """Records that stay together; `given` is the role that the data set sets for them, if any."""

    key: str
    records: tuple[int, ...]
    classes: frozenset[str]
    given: str | None


def assign_roles(
    records: Sequence[Record], hashes: Sequence[str | None], *, fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Give every record a role.

    A `split` that is set is kept, with one exception: where every record has one and a requested role is missing,
    that role is carved out of train, group by group, in proportion to `fractions`. Records without a `split` join
    the role that their group already has, or are dealt out so that all records together come near `fractions`.

    Args:
        records: n records.
        hashes: n SHA-256 hex digests, or None where unknown.
        fractions: share of each wanted role, > 0 (roles with 0 are not wanted), summing to 1; train is needed.
        seed: any integer; the same seed and records give the same roles in any order.

    Returns:
        n names out of `ROLES`; every class has at least one group in every role that was dealt out.

    Raises:
        UsageError: `fractions` does not make sense; code `fractions`.
        DataError: a class has fewer groups (lesions) than roles to deal out, code `class_too_small`, or is only
            outside train, code `class_not_in_train`.
    """
    checked_hashes(records, hashes)
    shares = _checked_fractions(fractions)
    groups = _groups(records, hashes)
    splits = {r.split for r in records}
    roles: list[str | None] = [r.split for r in records]
    if None in splits:
        dealt = _deal(groups, shares, seed)
    else:
        carved = {role: share for role, share in shares.items() if role == "train" or role not in splits}
        pool = _movable(groups, records)
        dealt = _deal(pool, _scaled(carved), seed) if len(carved) > 1 else {}
    for group, role in dealt.items():
        for index in group.records:
            if records[index].split is None or (None not in splits and records[index].split == "train"):
                roles[index] = role
    _refuse_untrained_classes(records, roles)
    return [str(role) for role in roles]


def assign_folds(records: Sequence[Record], hashes: Sequence[str | None], *, folds: int, seed: int) -> list[int]:
    """Give every record a fold, 0..folds-1, stratified by class; a lesion or patient is in one fold only.

    A `split` of the data set is ignored.

    Raises:
        UsageError: fewer than two folds. DataError: a class has fewer groups (lesions) than folds.
    """
    checked_hashes(records, hashes)
    if folds < 2:
        raise UsageError(f"Folds must be at least 2: got {folds}.", remedy="Use 5.", code="folds")
    groups = [replace(group, given=None) for group in _groups(records, hashes)]
    fold_of = {}
    for group, name in _deal(groups, {str(fold): 1 / folds for fold in range(folds)}, seed).items():
        fold_of.update(dict.fromkeys(group.records, int(name)))
    return [fold_of[index] for index in range(len(records))]


def role_table(
    records: Sequence[Record], hashes: Sequence[str | None], roles: Sequence[str]
) -> dict[str, dict[str, tuple[int, int]]]:
    """Count by class and role: `table[diagnosis][role]` is (images, lesions), without empty combinations."""
    images: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for record, lesion, role in zip(records, lesions(records, hashes), roles, strict=True):
        images[record.diagnosis, str(role)].append(lesion)
    return {
        code: {role: (len(found), len(set(found))) for role in ROLES if (found := images.get((code, role)))}
        for code in sorted({record.diagnosis for record in records})
    }


def find_crossing_groups(
    records: Sequence[Record], hashes: Sequence[str | None], roles: Sequence[str | None]
) -> list[tuple[int, ...]]:
    """Return the groups (as ascending record indices) whose records are in more than one role; None is no role."""
    crossing = []
    for group in members(lesion_groups(records, hashes)):
        if len({roles[i] for i in group} - {None}) > 1:
            crossing.append(tuple(group))
    return crossing


def _checked_fractions(fractions: Mapping[str, float]) -> dict[str, float]:
    unknown = [role for role in fractions if role not in ROLES]
    total = sum(fractions.values())
    negative = any(not share >= 0 for share in fractions.values())
    if unknown or negative or abs(total - 1) > _TOLERANCE or not fractions.get("train"):
        raise UsageError(
            f"The fractions are {dict(fractions)}, in sum {total:g}. "
            f"Allowed: shares of {', '.join(ROLES)}, none below 0, train above 0, in sum 1.",
            remedy="Correct the fractions in the recipe.",
            code="fractions",
        )
    return {role: fractions[role] for role in ROLES if fractions.get(role)}


def _scaled(shares: Mapping[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    return {role: share / total for role, share in shares.items()}


def _groups(records: Sequence[Record], hashes: Sequence[str | None]) -> list[_Group]:
    """Make groups in an order that does not depend on that of the records."""
    groups = []
    for indices in members(lesion_groups(records, hashes)):
        key = min(hashes[i] or f"image:{records[i].image}" for i in indices)
        given = {split for i in indices if (split := records[i].split)}
        strictest = max(given, key=ROLES.index) if given else None
        groups.append(_Group(key, tuple(indices), frozenset(records[i].diagnosis for i in indices), strictest))
    return sorted(groups, key=lambda group: group.key)


def _movable(groups: Sequence[_Group], records: Sequence[Record]) -> list[_Group]:
    """The groups that a carving may move, with the classes of their train records only."""
    movable = []
    for group in groups:
        classes = frozenset(records[i].diagnosis for i in group.records if records[i].split == "train")
        if classes:
            movable.append(_Group(group.key, group.records, classes, None))
    return movable


def _deal(groups: Sequence[_Group], shares: Mapping[str, float], seed: int) -> dict[_Group, str]:
    """Give each group a role: its given one, else dealt out class by class, the rarest first."""
    role_of = {group: group.given for group in groups if group.given}
    by_class: defaultdict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        for code in group.classes:
            by_class[code].append(group)
    for code in sorted(by_class, key=lambda code: (len(by_class[code]), code)):
        free = [group for group in by_class[code] if group not in role_of]
        free.sort(key=lambda group: hashlib.sha256(f"{seed}:{code}:{group.key}".encode()).digest())
        have = dict.fromkeys(shares, 0)
        for group in by_class[code]:
            if role_of.get(group) in have:
                have[role_of[group]] += 1
        counts = _counts(len(free), have, shares)
        places = [role for role in shares for _ in range(counts[role])]
        role_of.update(zip(free, places, strict=True))
    _refuse_small_classes(by_class, role_of, shares)
    return role_of


def _counts(free: int, have: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, int]:
    """Share out `free` groups so that, with those already placed, every role comes near its share and has one.

    Roles that already have more than their share get none and drop out; the rest is shared out among the others by
    largest remainder, earlier roles first among equals.
    """
    open_roles = dict(shares)
    while True:
        scaled = _scaled(open_roles)
        total = free + sum(have[role] for role in open_roles)
        ideal = {role: scaled[role] * total - have[role] for role in open_roles}
        full = [role for role in open_roles if ideal[role] < 0]
        if not full:
            break
        for role in full:
            del open_roles[role]
    counts = {role: int(ideal.get(role, 0) + _TOLERANCE) for role in shares}
    by_remainder = sorted(open_roles, key=lambda role: counts[role] - ideal[role])
    for role in by_remainder[: free - sum(counts.values())]:
        counts[role] += 1
    for role in shares:
        donors = [other for other in shares if counts[other] and counts[other] + have[other] > 1]
        if donors and have[role] + counts[role] == 0:
            counts[max(donors, key=lambda other: counts[other])] -= 1
            counts[role] += 1
    return counts


def _refuse_small_classes(
    by_class: Mapping[str, Sequence[_Group]], role_of: Mapping[_Group, str], shares: Mapping[str, float]
) -> None:
    small = [
        f"{code} has {len(groups)}"
        for code, groups in sorted(by_class.items())
        if set(shares) - {role_of[group] for group in groups}
    ]
    if small:
        raise DataError(
            f"Too few different lesions for the roles {', '.join(shares)}: {'; '.join(small)}. "
            f"Each class needs at least {len(shares)}; images of one lesion or patient count once.",
            remedy="Add images of other lesions, merge the class with a related one, or remove its folder.",
            code="class_too_small",
        )


def _refuse_untrained_classes(records: Sequence[Record], roles: Sequence[str | None]) -> None:
    trained = {r.diagnosis for r, role in zip(records, roles, strict=True) if role == "train"}
    untrained = sorted({r.diagnosis for r in records} - trained)
    if untrained:
        raise DataError(
            f"{len(untrained)} classes have no training images: {', '.join(untrained[:3])}.",
            remedy="Move some of their lesions to Train, or remove these classes.",
            code="class_not_in_train",
        )
