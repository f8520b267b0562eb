"""The whole audit of a data set: each file read once, every kind of finding, the counts.

Each step keeps its result by content in the user's cache, so that a second audit of the same pictures takes seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from dermlens.audit import facts as facts_module
from dermlens.audit import labels, lookalikes
from dermlens.audit.cache import Store, contents_key
from dermlens.audit.detectors import Artefacts, artefact_findings, artefact_rates, read_artefacts
from dermlens.audit.duplicates import NearPair, group_near, near_duplicates, near_findings, near_groups
from dermlens.audit.embed import Embedder, Embeddings, embed
from dermlens.audit.facts import ImageFacts, quality_findings, read_facts
from dermlens.audit.findings import KINDS, basic_findings
from dermlens.audit.labels import Suspect
from dermlens.audit.leakage import inferred_leaks, leak_counts, shared_with
from dermlens.audit.shortcuts import VERSION as SHORTCUTS_VERSION
from dermlens.audit.shortcuts import Shortcuts, probe_shortcuts, shortcut_findings
from dermlens.audit.verdict import Audit
from dermlens.data.manifest import read_reference
from dermlens.data.records import Dataset, Record, lesion_groups, members, picture_groups
from dermlens.reporting.progress import track

Vectors = tuple[Embeddings, list[str]]
"""What `embed` returns of all records: float16 (n, d), and the key of each row, "" where there is none."""


def run_audit(
    dataset: Dataset,
    *,
    reference: Path | None = None,
    against: Dataset | None = None,
    cache: bool = True,
    embedder: Embedder | None = None,
    console: Console,
) -> Audit:
    """Find what is wrong with a data set.

    Args:
        dataset: from `read_dataset` with the task as_is and the same `reference`, which knows its lesions.
        reference: CSV with `isic_id` and `isic2019_diagnosis`.
        against: another data set, from `read_pictures`, for example the one a model was trained on.
        cache: keep numbers (no pictures) by content in the user's cache; a second audit is then much quicker.
        embedder: a network that never saw these labels; without it cropped and tilted copies and likely label errors
            are not searched.
    """
    records = dataset.records
    material = _read(records, against, dataset.root.name, cache, console)
    hashes = material.own_hashes
    vectors = None
    if embedder is not None:
        with track("Embedding images", _different(material.hashes), console) as advance:
            vectors = embed(material.records, material.facts, embedder, cache=cache, progress=advance)
    version = embedder.version if embedder else None
    all_pairs = _near_pairs(material, vectors, version, console)
    pairs = [p for p in all_pairs if p.second < len(records)]
    groups, pictures = near_groups(pairs, hashes), picture_groups(records, hashes)
    known = labels.truths(records, pictures, read_reference(reference) if reference is not None else {})
    classes = labels.support(records)
    shortcuts = _shortcuts(material, console)
    suspects = _suspects(material, vectors, version, pairs, console) if vectors is not None else None
    artefacts = _artefacts(material, console)
    counts = _counts(records, hashes, pairs, groups, pictures)
    counts["labels_against_reference"] = labels.reference_counts(records, known) if reference is not None else None
    counts["label_suspects"] = None if suspects is None else len(suspects)
    counts["label_suspects_by_pair"] = None if suspects is None else labels.suspects_by_pair(records, suspects)
    findings = [
        *basic_findings(records, hashes),
        *near_findings(records, groups, pairs, hashes),
        *labels.lesion_findings(records, pictures),
        *labels.reference_findings(records, known),
        *inferred_leaks(records, groups, hashes),
        *labels.suspect_findings(records, suspects or []),
        *labels.support_findings(records, classes),
        *shortcut_findings(shortcuts),
        *artefact_findings(artefacts),
        *quality_findings(records, material.own_facts),
    ]
    if against is not None:
        shared, more = shared_with(records, material.others, material.hashes, all_pairs)
        counts["against"] = {"data": str(against.origin or against.root), **shared}
        findings += more
    return Audit(
        dataset,
        tuple(hashes),
        tuple(material.own_facts),
        tuple(known),
        tuple(pairs),
        tuple(sorted(findings, key=lambda f: KINDS.index(f.kind))),
        counts,
        classes,
        shortcuts,
        artefacts,
        reference,
    )


def _counts(
    records: Sequence[Record],
    hashes: Sequence[str | None],
    pairs: Sequence[NearPair],
    groups: Sequence[Sequence[int]],
    pictures: Sequence[int],
) -> dict[str, Any]:
    copies = Counter(digest for digest in hashes if digest is not None)
    contradicting = labels.contradictions(records, pictures)
    certain = {i for group in contradicting for i in group}
    near = labels.contradictions(records, group_near(pictures, pairs))
    return {
        "images": len(records),
        "different_pictures": len(members(pictures)),
        "unreadable": sum(digest is None for digest in hashes),
        "images_without_lesion_id": sum(record.lesion_id is None for record in records),
        "exact_duplicate_groups": sum(n > 1 for n in copies.values()),
        "near_duplicate_groups": len(groups),
        "near_duplicate_pairs_by_embedding": sum(pair.overlay is not None for pair in pairs),
        "near_duplicate_groups_contradicting": sum(len({records[i].diagnosis for i in g}) > 1 for g in groups),
        "contradicting_images": len(contradicting),
        "contradictions_by_pair": labels.pairs_of(records, contradicting),
        "contradicting_only_by_near_copies": sum(certain.isdisjoint(group) for group in near),
        **leak_counts(records, hashes, pairs),
    }


@dataclass(frozen=True, eq=False)
class _Material:
    """The records of a data set, then those of the one that it is compared with, and the facts of all in that order."""

    own: Sequence[Record]
    others: Sequence[Record]
    facts: Sequence[ImageFacts]
    cache: bool

    @cached_property
    def records(self) -> list[Record]:
        return [*self.own, *self.others]

    @cached_property
    def hashes(self) -> list[str | None]:
        return [fact.sha256 for fact in self.facts]

    @cached_property
    def own_facts(self) -> Sequence[ImageFacts]:
        return self.facts[: len(self.own)]

    @cached_property
    def own_hashes(self) -> list[str | None]:
        return self.hashes[: len(self.own)]

    @cached_property
    def groups(self) -> list[int]:
        """The lesions and patients of the own records, see `records.lesion_groups`."""
        return lesion_groups(self.own, self.own_hashes)


def _read(own: Sequence[Record], against: Dataset | None, name: str, cache: bool, console: Console) -> _Material:
    """Read each image; those of the other data set are named by its folder, to distinguish them."""
    others: list[Record] = []
    if against is not None:
        other_name = against.root.name if against.root.name != name else f"other {against.root.name}"
        others = [replace(record, image=f"{other_name}/{record.image}") for record in against.records]
    with track("Reading images", len(own) + len(others), console) as advance:
        facts = read_facts([*own, *others], cache=cache, progress=advance)
    return _Material(own, others, facts, cache)


def _different(hashes: Sequence[str | None]) -> int:
    return len(set(hashes) - {None})


def _near_pairs(material: _Material, vectors: Vectors | None, version: str | None, console: Console) -> list[NearPair]:
    """Return near duplicates among all records, by hash, then by embedding, sorted."""

    def compare() -> list[NearPair]:
        with track("Comparing images", _different(material.hashes), console) as advance:
            pairs = near_duplicates(material.records, material.facts, progress=advance)
        if vectors is not None:
            candidates = lookalikes.candidates(material.records, material.facts, *vectors, pairs)
            with track("Comparing similar images in detail", len(candidates), console, unit="pairs") as advance:
                pairs += lookalikes.confirmed(material.records, candidates, progress=advance)
        return sorted(pairs, key=lambda pair: (pair.first, pair.second))

    key = contents_key(material.records, material.hashes, facts_module.VERSION, lookalikes.VERSION, version)
    store: Store[list[NearPair]] = Store("near pairs", list[NearPair], enabled=material.cache)
    return store.get(key, compare)


def _shortcuts(material: _Material, console: Console) -> Shortcuts | None:
    def probe() -> Shortcuts | None:
        console.print("Looking for shortcuts ...", highlight=False)
        return probe_shortcuts(material.own, material.own_facts, material.groups)

    store: Store[Shortcuts | None] = Store("shortcuts", Shortcuts | None, enabled=material.cache)
    return store.get(contents_key(material.own, material.own_hashes, SHORTCUTS_VERSION, facts_module.VERSION), probe)


def _suspects(
    material: _Material, vectors: Vectors, version: str | None, pairs: Sequence[NearPair], console: Console
) -> list[Suspect]:
    """Return labels that are likely wrong; near duplicates stay in one fold, as lesions do."""
    groups, own = group_near(material.groups, pairs), len(material.own)

    def look() -> list[Suspect]:
        console.print("Looking for wrong labels ...", highlight=False)
        return labels.label_suspects(material.own, vectors[0][:own], vectors[1][:own], groups)

    store: Store[list[Suspect]] = Store("label suspects", list[Suspect], enabled=material.cache)
    return store.get(contents_key(material.own, material.own_hashes, labels.VERSION, version, groups), look)


def _artefacts(material: _Material, console: Console) -> Artefacts:
    """Return how often hair, rulers, ink and dark corners are on the images of each class."""
    with track("Looking for hair, rulers, ink", _different(material.own_hashes), console) as advance:
        found = read_artefacts(material.own, material.own_facts, cache=material.cache, progress=advance)
    return artefact_rates(material.own, material.own_facts, found, material.groups)
