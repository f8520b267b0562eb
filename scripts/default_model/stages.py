"""The data of each stage of the training, and of a training that leaves one archive out.

Stage 1 learns BCN_20000 at its 84 pixels, with its own eight classes. Stage 2 learns the classes of `EIGHT` on all
other collections. Its roles are dealt out once by lesion, over all of them, so that a lesion has one role in every
variant. What stage 1 may have seen is in no other role than train.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from dermlens.data.records import Dataset, Record, lesion_groups
from dermlens.diagnoses import to_eight
from dermlens.errors import UsageError
from dermlens.training.recipe import Recipe
from dermlens.training.split import assign_folds, assign_roles
from scripts.default_model.joined import Joined
from scripts.default_model.sources import BCN, ORIGINS, origin_of


def stage_1(joined: Joined, *, without: str | None = None) -> Dataset:
    """Return BCN_20000 with its own classes, without roles; lesions of reserved examples are left out.

    Args:
        without: an archive; lesions that BCN_20000 shares with it are left out as well.
    """
    barred = _barred(joined, without) if without else set()
    groups = lesion_groups(joined.records, joined.hashes)
    chosen = [
        record
        for record, group in zip(joined.records, groups, strict=True)
        if origin_of(record) == BCN and record.split is None and group not in barred
    ]
    return Dataset(joined.root, "stage 1", tuple(chosen), joined.notes)


def stage_2(
    joined: Joined,
    *,
    bcn: bool = False,
    without: str | None = None,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Dataset:
    """Return all collections but BCN_20000 with the classes of `EIGHT` and the roles of their lesions.

    Args:
        bcn: add the pictures of BCN_20000 that have one of the classes, in the role train.
        without: an archive out of `ORIGINS` of which no picture is in it, nor any of a lesion that it shares.
        fractions: share of each role; those of the recipe by default.
        seed: of the roles.
    """
    groups = lesion_groups(joined.records, joined.hashes)
    of_bcn = _barred(joined, BCN)
    barred = _barred(joined, without) if without else set()
    rows, unmapped = [], Counter[str]()
    for index, record in enumerate(joined.records):
        if to_eight(record.diagnosis) is None:
            unmapped[f"{origin_of(record)}'s {record.diagnosis}"] += 1
        else:
            rows.append(index)
    classed = [_classed(joined.records[i], "train" if groups[i] in of_bcn else None) for i in rows]
    dealt = [(r, i) for r, i in zip(classed, rows, strict=True) if origin_of(r) != BCN]
    roles = assign_roles(
        [r for r, _ in dealt],
        [joined.hashes[i] for _, i in dealt],
        fractions=fractions or Recipe().fractions,
        seed=seed,
    )
    chosen = [(replace(r, split=role), i) for (r, i), role in zip(dealt, roles, strict=True)]
    if bcn:
        chosen += [(r, i) for r, i in zip(classed, rows, strict=True) if origin_of(r) == BCN and r.split == "train"]
    records = tuple(r for r, i in chosen if groups[i] not in barred)
    return Dataset(joined.root, "stage 2", records, (*joined.notes, *_unmapped_note(unmapped)))


def left_out(joined: Joined, origin: str) -> Dataset:
    """Return the pictures of an archive to score a training without it, with classes of `EIGHT`, in the role test.

    Lesions that BCN_20000 shares are left out, since stage 1 has seen them.
    """
    _check_origin(origin)
    groups = lesion_groups(joined.records, joined.hashes)
    seen = _barred(joined, BCN) if origin != BCN else set()
    records = tuple(
        replace(record, diagnosis=code, split="test")
        for record, group in zip(joined.records, groups, strict=True)
        if origin_of(record) == origin and group not in seen and (code := to_eight(record.diagnosis))
    )
    return Dataset(joined.root, f"{origin} left out", records)


def unfamiliar(joined: Joined, codes: Collection[str] = ("INF", "BEN_OTH", "MAL_OTH")) -> Dataset:
    """Return MILK10k's lesions of other kinds, half of them in the role calibrate and half in test."""
    rows = [i for i, record in enumerate(joined.records) if record.diagnosis in codes]
    records, hashes = [joined.records[i] for i in rows], [joined.hashes[i] for i in rows]
    folds = assign_folds(records, hashes, folds=2, seed=0)
    named = (replace(r, split=("calibrate", "test")[fold]) for r, fold in zip(records, folds, strict=True))
    return Dataset(joined.root, "unfamiliar", tuple(named))


def describe(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    """Count pictures: "archive, domain" -> class -> number."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        counts.setdefault(f"{origin_of(record)}, {record.domain}", Counter())[record.diagnosis] += 1
    return {name: dict(sorted(of_class.items())) for name, of_class in sorted(counts.items())}


def _classed(record: Record, split: str | None) -> Record:
    return replace(record, diagnosis=str(to_eight(record.diagnosis)), split=record.split or split)


def _barred(joined: Joined, origin: str) -> set[int]:
    """Return the lesion groups that hold a picture of an archive, one that was left out as a copy included."""
    _check_origin(origin)
    groups = lesion_groups(joined.records, joined.hashes)
    return {
        group
        for record, group in zip(joined.records, groups, strict=True)
        if origin == origin_of(record) or origin in joined.origins_of_lesion.get(record.lesion_id or "", ())
    }


def _check_origin(origin: str) -> None:
    if origin not in ORIGINS:
        raise UsageError(
            f"The archive is {origin!r}. Allowed: {', '.join(ORIGINS)}.", remedy="Name one of them.", code="origin"
        )


def _unmapped_note(unmapped: Counter[str]) -> list[str]:
    if not unmapped:
        return []
    parts = ", ".join(f"{n} {what}" for what, n in unmapped.most_common())
    return [f"{unmapped.total():,} pictures have no class of the eight and are left out: {parts}."]
