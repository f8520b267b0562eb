"""The collections joined: one label and one copy of each picture, and one lesion id for all pictures of a lesion.

Pictures are the same where files or ISIC ids are. Look-alikes that differ in both, in whichever collections they are,
were searched for as `dermlens audit --against` does; what was found is in `lookalikes.csv`, names only, so that a
training need not search again. `python -m scripts.default_model lookalikes --data DATA` makes it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from rich.console import Console

from dermlens.audit.duplicates import near_duplicates
from dermlens.audit.embed import Embedder, embed
from dermlens.audit.facts import ImageFacts, read_facts
from dermlens.audit.labels import compatible
from dermlens.audit.lookalikes import candidates, confirmed
from dermlens.data.manifest import read_reference
from dermlens.data.records import Record, group_connected, members, picture_groups
from dermlens.data.tables import read_table, write_table
from dermlens.reporting.progress import track
from scripts.default_model.sources import ORIGINS, origin_of, read_sources

LOOKALIKES = Path(__file__).parent / "lookalikes.csv"
"""Pairs of pictures, by name, that show one lesion although files, ISIC ids and lesion ids differ."""

RESERVED = Path(__file__).parent / "reserved.json"  # the example images and their lesions
_FILLED = ("lesion_id", "patient_id", "age_approx", "sex", "anatom_site", "dx_type", "fitzpatrick", "skin_tone")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Joined:
    """All collections as one: labels are each collection's own.

    Attributes:
        records: one for each picture; the split is "test" for reserved lesions, else None.
        hashes: SHA-256 of their files.
        isic_ids_of_lesion, origins_of_lesion: by lesion id, of all its pictures, those that are left out too.
        notes: what was joined and left out, one sentence each.
    """

    records: tuple[Record, ...]
    hashes: tuple[str, ...]
    isic_ids_of_lesion: dict[str, list[str]]
    origins_of_lesion: dict[str, list[str]]
    notes: tuple[str, ...]
    root: Path = Path()


def name_of(record: Record) -> str:
    """Return what a picture is called in all collections: its ISIC id, or else the name of its file."""
    return record.isic_id or record.path.stem


def read_pictures(data: Path, console: Console) -> tuple[list[Record], list[ImageFacts], list[str]]:
    """Return one record for each picture of all collections with the facts of its file, and notes."""
    records = read_sources(data).records
    with track("Reading images", len(records), console) as advance:
        facts = read_facts(records, cache=True, progress=advance)
    reference = data / "isic_reference.csv"
    return one_copy(records, facts, read_reference(reference) if reference.is_file() else {})


def one_copy(
    records: Sequence[Record], facts: Sequence[ImageFacts], reference: Mapping[str, str]
) -> tuple[list[Record], list[ImageFacts], list[str]]:
    """Return the sharpest copy of each picture, with what is known of any copy, its facts, and notes.

    The label is that of the collection which the picture is from. Of a picture that only ISIC-9 has it is the
    reference's, and where that does not know it, ISIC-9's own. A picture with two labels is left out.
    """
    chosen: list[int] = []
    result: list[Record] = []
    contradicted: Counter[str] = Counter()
    copies = 0
    for group in members(picture_groups(records, [fact.sha256 for fact in facts])):
        readable = [i for i in group if facts[i].sha256 is not None]
        labels = _labels([records[i] for i in group], reference)
        if len(labels) > 1:
            contradicted["/".join(sorted(labels))] += 1
        elif readable:
            best = max(readable, key=lambda i: (*sharpness(facts[i]), -i))
            chosen.append(best)
            result.append(replace(_filled(records[best], [records[i] for i in group]), diagnosis=labels.pop()))
            copies += len(readable) - 1
    notes = [f"{copies} more copies of the same pictures are left out."] if copies else []
    if contradicted:
        pairs = ", ".join(f"{n} {labels}" for labels, n in sorted(contradicted.items()))
        notes.append(f"{contradicted.total()} pictures have more than one diagnosis and are left out: {pairs}.")
    unreadable = sum(fact.sha256 is None for fact in facts)
    if unreadable:
        notes.append(f"{unreadable} unreadable files are left out.")
    return result, [facts[i] for i in chosen], notes


def sharpness(fact: ImageFacts) -> tuple[int, int]:
    """Return what decides which copy is the sharpest: the shorter side in pixels, then the size of the file."""
    return min(fact.width_px, fact.height_px), fact.size_bytes


def _labels(copies: Sequence[Record], reference: Mapping[str, str]) -> set[str]:
    stated = {r.diagnosis for r in copies if not r.image.startswith("isic9/")}
    official = {reference[name] for r in copies if (name := r.isic_id or "") in reference}
    return stated or official or {r.diagnosis for r in copies}


def _filled(best: Record, copies: Iterable[Record]) -> Record:
    """Return a record with what the other copies of its picture know."""
    known = {f.name: getattr(best, f.name) for f in fields(best) if f.name in (*_FILLED, "isic_id", "licence")}
    for copy in copies:
        known |= {name: getattr(copy, name) for name, value in known.items() if value is None}
    return replace(best, **known)


def search(records: Sequence[Record], facts: Sequence[ImageFacts], embedder: Embedder, console: Console) -> list[Pair]:
    """Return the names of pictures that look like one photograph and are not known to show one lesion, sorted.

    Dermoscopic pictures and close-ups are searched apart: none of one kind is a copy of the other. Of two pictures to
    which one collection gives different lesion ids only the perceptual hashes are compared.
    """
    found: list[Pair] = []
    for domain in sorted({str(r.domain) for r in records}):
        rows = [i for i, r in enumerate(records) if str(r.domain) == domain]
        some, known = [records[i] for i in rows], [facts[i] for i in rows]
        with track(f"Embedding {domain} images", len(rows), console) as advance:
            vectors, keys = embed(some, known, embedder, cache=True, progress=advance)
        with track("Comparing images", len(rows), console) as advance:
            pairs = near_duplicates(some, known, progress=advance)
        near = candidates(some, known, vectors, keys, pairs, exact=True)
        near = [(i, j) for i, j in near if not _told_apart(some[i], some[j])]
        with track("Comparing similar images in detail", len(near), console, unit="pairs") as advance:
            pairs += confirmed(some, near, progress=advance)
        found += (tied for p in pairs if (tied := _untied(some[p.first], some[p.second])))
    return sorted(found)


def _told_apart(one: Record, other: Record) -> bool:
    """Whether one collection says that two pictures show different lesions."""
    known = one.lesion_id is not None and other.lesion_id is not None
    return known and one.lesion_id != other.lesion_id and origin_of(one) == origin_of(other)


def _untied(one: Record, other: Record) -> Pair | None:
    """Return the names of two pictures, sorted; None where their lesion is known to be one."""
    if one.lesion_id is not None and one.lesion_id == other.lesion_id:
        return None
    first, second = sorted((name_of(one), name_of(other)))
    return first, second


def write_pairs(pairs: Iterable[Pair], path: Path = LOOKALIKES) -> None:
    """Write the pairs of names as CSV."""
    write_table(path, ("one", "other"), [{"one": one, "other": other} for one, other in pairs])


def read_pairs(path: Path = LOOKALIKES) -> list[Pair]:
    """Return the pairs of names that a search has found."""
    return [(row["one"], row["other"]) for row in read_table(path).rows]


def join(
    records: Sequence[Record],
    facts: Sequence[ImageFacts],
    pairs: Sequence[Pair],
    reserved: Collection[str] = (),
    notes: Sequence[str] = (),
) -> Joined:
    """Give all pictures of a lesion one lesion id, and keep the sharpest of each group of look-alikes.

    A lesion with two diagnoses that cannot mean the same is left out whole. The lesion id is that of the first
    collection in `ORIGINS` which has one, or else the name of a picture.

    Args:
        records, facts: one of each picture, from `one_copy`.
        pairs: names of pictures that look alike.
        reserved: names of pictures and lesions that are examples: their lesions get the role test.
    """
    names = [name_of(record) for record in records]
    place = {name: index for index, name in enumerate(names)}
    known = [(place[one], place[other]) for one, other in pairs if one in place and other in place]
    pictures = group_connected([(name,) for name in names], known)
    lesions = group_connected([(name, r.lesion_id) for name, r in zip(names, records, strict=True)], known)
    dull = {i for group in members(pictures) for i in _all_but_sharpest(group, facts)}
    kept: list[int] = []
    result: list[Record] = []
    ids: dict[str, list[str]] = {}
    origins: dict[str, list[str]] = {}
    counts = _Counts()
    for group in members(lesions):
        own = [records[i] for i in group]
        counts.add(own, len(dull.intersection(group)))
        if not _one_diagnosis(own):
            continue
        lesion_id = _lesion_id(own)
        if lesion_id is not None:
            ids[lesion_id] = sorted({r.isic_id for r in own if r.isic_id})
            origins[lesion_id] = sorted({origin_of(r) for r in own}, key=ORIGINS.index)
        split = "test" if any(name in reserved for r in own for name in (name_of(r), r.lesion_id)) else None
        for i in group:
            if i not in dull:
                kept.append(i)
                result.append(replace(records[i], lesion_id=lesion_id, split=split))
    order = sorted(range(len(kept)), key=kept.__getitem__)
    return Joined(
        tuple(result[i] for i in order),
        tuple(str(facts[kept[i]].sha256) for i in order),
        ids,
        origins,
        (*notes, *counts.sentences()),
    )


def _all_but_sharpest(group: Sequence[int], facts: Sequence[ImageFacts]) -> list[int]:
    best = max(group, key=lambda i: (*sharpness(facts[i]), -i))
    return [i for i in group if i != best]


def _one_diagnosis(own: Sequence[Record]) -> bool:
    """Whether all labels of a lesion can mean the same."""
    labels = sorted({r.diagnosis for r in own})
    return all(compatible(one, other) for n, one in enumerate(labels) for other in labels[n + 1 :])


def _lesion_id(own: Sequence[Record]) -> str | None:
    stated = sorted((ORIGINS.index(origin_of(r)), r.lesion_id) for r in own if r.lesion_id)
    if stated:
        return stated[0][1]
    return min(map(name_of, own)) if len(own) > 1 else None


@dataclass
class _Counts:
    """What was joined and what was left out, for the card."""

    across: Counter[str] = field(default_factory=Counter)
    within: Counter[str] = field(default_factory=Counter)
    contradicting: Counter[str] = field(default_factory=Counter)
    dull: int = 0

    def add(self, own: Sequence[Record], dull: int) -> None:
        origins = sorted({origin_of(r) for r in own}, key=ORIGINS.index)
        if not _one_diagnosis(own):
            self.contradicting["/".join(sorted({r.diagnosis for r in own}))] += 1
            return
        self.dull += dull
        if len(origins) > 1:
            self.across[" and ".join(origins)] += 1
        elif len({r.lesion_id or name_of(r) for r in own}) > 1:
            self.within[origins[0]] += 1

    def sentences(self) -> list[str]:
        said = []
        for what, counter in (("are in more than one collection", self.across), ("have two ids in one", self.within)):
            if counter:
                parts = ", ".join(f"{n} of {names}" for names, n in counter.most_common())
                said.append(f"{counter.total():,} lesions {what}, found by look-alikes, and are joined: {parts}.")
        if self.dull:
            said.append(f"{self.dull:,} pictures are less sharp copies of another and are left out.")
        if self.contradicting:
            parts = ", ".join(f"{n} {labels}" for labels, n in sorted(self.contradicting.items()))
            said.append(f"{self.contradicting.total()} joined lesions have two diagnoses and are left out: {parts}.")
        return said


def read_joined(data: Path, console: Console) -> Joined:
    """Read all collections and join them by `lookalikes.csv`; the examples of `reserved.json` get the role test."""
    records, facts, notes = read_pictures(data, console)
    reserved = json.loads(RESERVED.read_text(encoding="utf-8"))
    joined = join(records, facts, read_pairs(), {*reserved["isic_ids"], *reserved["lesion_ids"]}, notes)
    return replace(joined, root=data)
