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
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from dermlens.audit.duplicates import NearPair, group_near, near_duplicates
from dermlens.audit.embed import Embedder, embed
from dermlens.audit.facts import ImageFacts, read_facts
from dermlens.audit.labels import compatible
from dermlens.audit.lookalikes import candidates, confirmed, overlays, unit
from dermlens.data.manifest import read_reference
from dermlens.data.records import Record, group_connected, members, picture_groups
from dermlens.data.tables import read_table, write_table
from dermlens.reporting.progress import track
from scripts.default_model.sources import ORIGINS, origin_of, read_sources

LOOKALIKES = Path(__file__).parent / "lookalikes.csv"
"""Pairs of pictures, by name, that show one lesion although files, ISIC ids and lesion ids differ."""

RESERVED = Path(__file__).parent / "reserved.json"  # the example images and their lesions
_FILLED = ("lesion_id", "patient_id", "age_approx", "sex", "anatom_site", "dx_type", "fitzpatrick", "skin_tone")

NEIGHBOURS, MIN_LIKENESS = 8, 0.7  # in each other archive; 99 % of the lesions that are known to be shared have 0.73
_BLOCK = 512
MIN_CORRELATION = 0.8  # of two pictures that are alike by hash: those that are one have 0.89 or more

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


def search(
    records: Sequence[Record],
    facts: Sequence[ImageFacts],
    embedder: Embedder,
    console: Console,
    *,
    first: int | None = None,
) -> list[Pair]:
    """Return the names of pictures that look like one photograph and are not known to show one lesion, sorted.

    Dermoscopic pictures and close-ups are searched apart: none of one kind is a copy of the other. Of two pictures to
    which one collection gives different lesion ids only the perceptual hashes are compared first.

    Args:
        records, facts: one of each picture.
        first: look only for pictures among the others that the first so many look like.
    """
    found: list[Pair] = []
    for domain in sorted({str(r.domain) for r in records}):
        rows = [i for i, r in enumerate(records) if str(r.domain) == domain]
        own = len(rows) if first is None else sum(i < first for i in rows)
        some, known = [records[i] for i in rows], [facts[i] for i in rows]
        with track(f"Embedding {domain} images", len(rows), console) as advance:
            vectors, keys = embed(some, known, embedder, cache=True, progress=advance)
        with track("Comparing images", len(rows), console) as advance:
            alike = near_duplicates(some, known, progress=advance)
        pairs = _laid_over(some, [p for p in alike if first is None or p.first < own <= p.second])
        near = {*candidates(some, known, vectors, keys, pairs, exact=True), *_nearest_elsewhere(some, unit(vectors))}
        ties = group_near(range(len(some)), pairs)
        near = {(i, j) for i, j in near if ties[i] != ties[j] and not _told_apart(some[i], some[j])}
        if first is not None:
            near = {(i, j) for i, j in near if i < own <= j}
        with track("Comparing similar images in detail", len(near), console, unit="pairs") as advance:
            pairs += confirmed(some, sorted(near), progress=advance)
        found += (tied for p in pairs if (tied := _untied(some[p.first], some[p.second])))
    return sorted(found)


def _laid_over(records: Sequence[Record], pairs: Sequence[NearPair]) -> list[NearPair]:
    """Return the pairs whose fine structure agrees: by hash alone two round spots, or two black rims, are alike."""
    lying = overlays(records, [(p.first, p.second) for p in pairs])
    return [p for p, lies in zip(pairs, lying, strict=True) if lies and lies.correlation >= MIN_CORRELATION]


def _nearest_elsewhere(records: Sequence[Record], vectors: npt.NDArray[np.float16]) -> set[tuple[int, int]]:
    """Return each picture with its nearest ones in each other archive, `first < second`.

    Among all pictures those of its own archive crowd out the one that is the same: an archive has one look.
    """
    archives = np.array([origin_of(record) for record in records])
    places = {name: np.flatnonzero(archives == name) for name in sorted(set(archives.tolist()))}
    found: set[tuple[int, int]] = set()
    for one, other in permutations(places, 2):
        theirs = vectors[places[other]].astype(np.float32).T
        for start in range(0, len(places[one]), _BLOCK):
            mine = places[one][start : start + _BLOCK]
            likeness = vectors[mine].astype(np.float32) @ theirs
            best = np.argpartition(-likeness, min(NEIGHBOURS, theirs.shape[1]) - 1, axis=1)[:, :NEIGHBOURS]
            rows, columns = np.nonzero(np.take_along_axis(likeness, best, axis=1) >= MIN_LIKENESS)
            pairs = np.sort(np.stack([mine[rows], places[other][best[rows, columns]]], axis=1), axis=1)
            found.update(map(tuple, pairs.tolist()))
    return found


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
    """Return the pairs of names in the two columns of a table."""
    rows = [tuple(row.values()) for row in read_table(path).rows]
    return [(str(row[0]), str(row[1])) for row in rows]


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
    """Read all collections and join them by look-alikes; the examples of `reserved.json` get the role test.

    Pairs are those of `lookalikes.csv`, and those that `milk10k/same_lesion.csv` lists beside the pictures.
    """
    records, facts, notes = read_pictures(data, console)
    reserved = json.loads(RESERVED.read_text(encoding="utf-8"))
    listed = data / "milk10k" / "same_lesion.csv"
    pairs = [*read_pairs(), *(read_pairs(listed) if listed.is_file() else ())]
    joined = join(records, facts, pairs, {*reserved["isic_ids"], *reserved["lesion_ids"]}, notes)
    return replace(joined, root=data)
