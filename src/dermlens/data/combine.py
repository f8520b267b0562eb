"""Several data sets become one: joined under unique names, and one copy kept of every picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from dermlens.data.records import Dataset, Record, members, picture_groups
from dermlens.errors import UsageError


def combine(*datasets: Dataset, names: Sequence[str] | None = None) -> Dataset:
    """Join data sets; every image name gets its data set's name as a prefix ("isic9/Train/nevus/ISIC_0000001.jpg").

    Lesion and patient ids are kept, so that a lesion which two data sets share stays one lesion; ids that are
    numbered within a data set must be told apart before. A record without a source gets the prefix as its source.

    Args:
        names: a prefix for each data set; by default the names of their root folders, numbered where equal.

    Raises:
        UsageError: no data sets, or `names` are not one different name for each.
    """
    prefixes = list(names) if names is not None else _numbered([d.root.name for d in datasets])
    if not datasets or len(prefixes) != len(datasets) or len(set(prefixes)) < len(prefixes):
        raise UsageError(
            f"{len(datasets)} data sets with the names {prefixes}. Each needs a name of its own.",
            remedy="Pass one different name for each data set.",
        )
    records = tuple(
        replace(record, image=f"{prefix}/{record.image}", source=record.source or prefix)
        for prefix, dataset in zip(prefixes, datasets, strict=True)
        for record in dataset.records
    )
    notes = tuple(f"{prefix}: {note}" for prefix, d in zip(prefixes, datasets, strict=True) for note in d.notes)
    layout = " + ".join(dict.fromkeys(dataset.layout for dataset in datasets))
    return Dataset(datasets[0].root, layout, records, notes)


def drop_contradictions_and_duplicates(
    records: Sequence[Record],
    hashes: Sequence[str | None],
    *,
    prefer: Sequence[str] = (),
) -> tuple[list[Record], list[str]]:
    """Keep one copy of every picture, and none of a picture that stands under two diagnoses.

    Records show the same picture when their files are byte for byte the same or they share an ISIC id.

    Args:
        records: n records; their labels should have been repaired through a reference before.
        hashes: n SHA-256 hex digests, None where unreadable; unreadable files are left out.
        prefer: values of `Record.source`, the best copy first; other sources come after them, in given order.

    Returns:
        The kept records in their order, and notes that count what was left out.
    """
    kept, notes = kept_copies(records, hashes, prefer=prefer)
    return [records[i] for i in kept], notes


def kept_copies(
    records: Sequence[Record],
    hashes: Sequence[str | None],
    *,
    prefer: Sequence[str] = (),
) -> tuple[list[int], list[str]]:
    """As `drop_contradictions_and_duplicates`, but return the ascending indices of the kept records."""
    rank = {source: place for place, source in enumerate(prefer)}
    kept: list[int] = []
    contradicted: Counter[str] = Counter()
    contradicting_files = copies = 0
    for group in members(picture_groups(records, hashes)):
        labels = sorted({records[i].diagnosis for i in group})
        readable = [i for i in group if hashes[i] is not None]
        if len(labels) > 1:
            contradicted["/".join(labels)] += 1
            contradicting_files += len(group)
        elif readable:
            kept.append(min(readable, key=lambda i: (rank.get(records[i].source or "", len(rank)), i)))
            copies += len(readable) - 1
    notes = []
    if contradicted:
        pairs = ", ".join(f"{n} {labels}" for labels, n in sorted(contradicted.items()))
        notes.append(
            f"{contradicted.total()} pictures ({contradicting_files} files) stand under more than one diagnosis "
            f"and are left out: {pairs}."
        )
    if copies:
        notes.append(f"{copies} further copies of kept pictures are left out.")
    if None in hashes:
        notes.append(f"{sum(h is None for h in hashes)} unreadable files are left out.")
    return sorted(kept), notes


def _numbered(names: Sequence[str]) -> list[str]:
    """Make names unique: a, b, a -> a, b, a-2."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result
