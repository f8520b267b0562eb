"""The whole audit of a data set: each file read once, every kind of finding, the counts, the repair.

What an audit computes of a data set, each step shown, and kept by content so that a second audit takes seconds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dermlens.audit.detectors import Artefacts, artefact_findings
from dermlens.audit.duplicates import NearPair, linked, near_findings, near_groups
from dermlens.audit.embed import Embedder
from dermlens.audit.facts import ImageFacts, quality_findings
from dermlens.audit.findings import KINDS, Finding
from dermlens.audit.findings import audit as basic_findings
from dermlens.audit.labels import (
    contradictions,
    lesion_findings,
    pairs_of,
    reference_counts,
    reference_findings,
    support,
    support_findings,
    suspect_findings,
    suspects_by_pair,
    truths,
)
from dermlens.audit.leakage import inferred_leaks, leak_counts, shared_with
from dermlens.audit.repair import Repair, plan_repair
from dermlens.audit.shortcuts import Shortcuts, shortcut_findings
from dermlens.data.manifest import read_reference
from dermlens.data.records import Dataset, Record, data_fingerprint, members, picture_groups
from dermlens.errors import StorageError

if TYPE_CHECKING:
    import pandas as pd
from dataclasses import replace
from functools import cached_property

from dermlens.audit import labels as suspects
from dermlens.audit import lookalikes
from dermlens.audit.cache import VERSION, contents_key, kept, load_facts, save_facts
from dermlens.audit.detectors import artefact_rates, load_artefacts, read_artefacts, save_artefacts
from dermlens.audit.duplicates import near_duplicates
from dermlens.audit.embed import Embeddings, embed, load_embeddings, save_embeddings
from dermlens.audit.facts import read_facts
from dermlens.audit.geometry import Overlay
from dermlens.audit.labels import Suspect, label_suspects
from dermlens.audit.shortcuts import Probe, probe_shortcuts
from dermlens.data.records import lesion_groups
from dermlens.reporting.progress import track

SCHEMA = "dermlens/audit/1"


@dataclass(frozen=True, eq=False)
class Audit:
    """Everything an audit found; `as_dict` is what `audit.json` holds.

    Attributes:
        hashes, facts, known: one for each record of `dataset`; `known` is what the reference says of it.
        pairs: near duplicates within the data set.
        counts: how many images are concerned, by name.
        classes: what the size of each class allows, see `labels.support`.
    """

    dataset: Dataset
    hashes: tuple[str | None, ...]
    facts: tuple[ImageFacts, ...]
    known: tuple[str | None, ...]
    pairs: tuple[NearPair, ...]
    findings: tuple[Finding, ...]
    counts: dict[str, Any]
    classes: dict[str, dict[str, Any]]
    shortcuts: Shortcuts | None
    artefacts: Artefacts
    reference: Path | None = None

    @property
    def ceiling(self) -> float | None:
        """The best test accuracy of a model that fits its training labels; None without train and test images.

        Certain: it rests on pictures that are the same by bytes or ISIC id.
        """
        return self._reachable("test_images_only_under_another_label_in_train")

    @property
    def inferred_ceiling(self) -> float | None:
        """`ceiling` when near duplicates, too, count as the same picture; never above it."""
        return self._reachable("test_images_only_under_another_label_with_near_copies")

    def _reachable(self, wrong: str) -> float | None:
        test = int(self.counts["test_images"])
        if not test or not any(r.split == "train" for r in self.dataset.records):
            return None
        return round((test - int(self.counts[wrong])) / test, 6)

    def repair(self, *, keep_train: bool = False) -> Repair:
        """Plan the repair of what was found."""
        return plan_repair(
            self.dataset.records,
            self.hashes,
            truths=self.known,
            pairs=self.pairs,
            areas_px=[f.width_px * f.height_px for f in self.facts],
            keep_train=keep_train,
        )

    def as_dict(self, repair: Repair | None = None) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "schema": SCHEMA,
            "data": str(self.dataset.origin or self.dataset.root),
            "layout": self.dataset.layout,
            "reference": str(self.reference) if self.reference else None,
            "fingerprint": data_fingerprint(self.dataset.records, self.hashes),
            "notes": list(self.dataset.notes),
            "counts": self.counts,
            "findings_by_kind": by_kind(self.findings),
            "test_accuracy_ceiling": self.ceiling,
            "test_accuracy_ceiling_inferred": self.inferred_ceiling,
            "classes": self.classes,
            "shortcuts": self.shortcuts.as_dict() if self.shortcuts else None,
            "artefacts": {name: asdict(rates) for name, rates in self.artefacts.items()},
            "repair": repair.counts() if repair else None,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each finding, the most serious kinds first."""
        import pandas as pd

        names = [field.name for field in fields(Finding)]
        return pd.DataFrame([asdict(finding) for finding in self.findings], columns=names)

    def _repr_html_(self) -> str:
        from dermlens.audit.report import as_html

        return as_html(self)


def run_audit(
    dataset: Dataset,
    *,
    reference: Path | None = None,
    against: Dataset | None = None,
    cache: Path | None = None,
    embedder: Embedder | None = None,
    console: Console,
) -> Audit:
    """Find what is wrong with a data set.

    Args:
        dataset: from `read_dataset` with the task as_is, read with the same `reference`, which tells its lesions.
        reference: CSV with `isic_id` and `isic2019_diagnosis`.
        against: another data set that this one is to be used beside, for example the one a model learned from.
        cache: a folder that keeps what was read of each image, by content; a second audit is then much quicker.
        embedder: a network that never saw these labels; without it cropped and tilted copies and likely label errors
            are not looked for.
    """
    records = dataset.records
    said = read_reference(reference) if reference is not None else {}
    material = read_material(records, against, dataset.root.name, cache, console)
    facts, hashes = material.own_facts, [fact.sha256 for fact in material.own_facts]
    vectors = embeddings(material, embedder, console) if embedder is not None else None
    all_pairs = near_pairs(material, vectors, console)
    pairs = [p for p in all_pairs if p.second < len(records)]
    groups = near_groups(len(records), pairs, hashes)
    pictures = picture_groups(records, hashes)
    known = truths(records, pictures, said)
    classes = support(records)
    shortcuts = find_shortcuts(material, console)
    suspects = find_suspects(material, vectors, pairs, console) if vectors is not None else None
    artefacts = find_artefacts(material, console)
    counts = _counts(records, hashes, pairs, groups, pictures)
    counts["labels_against_reference"] = reference_counts(records, known) if reference is not None else None
    counts["label_suspects"] = None if suspects is None else len(suspects)
    counts["label_suspects_by_pair"] = None if suspects is None else suspects_by_pair(records, suspects)
    findings = [
        *basic_findings(records, hashes),
        *near_findings(records, groups, pairs, hashes),
        *lesion_findings(records, pictures),
        *reference_findings(records, known),
        *inferred_leaks(records, groups, hashes),
        *suspect_findings(records, suspects or []),
        *support_findings(records, classes),
        *shortcut_findings(shortcuts),
        *artefact_findings(artefacts),
        *quality_findings(records, facts),
    ]
    if against is not None:
        shared, more = shared_with(records, material.others, [fact.sha256 for fact in material.facts], all_pairs)
        counts["against"] = {"data": str(against.origin or against.root), **shared}
        findings += more
    return Audit(
        dataset,
        tuple(hashes),
        tuple(facts),
        tuple(known),
        tuple(pairs),
        tuple(sorted(findings, key=lambda f: KINDS.index(f.kind))),
        counts,
        classes,
        shortcuts,
        artefacts,
        reference,
    )


def by_kind(findings: Sequence[Finding]) -> dict[str, int]:
    """Count findings by kind, in the order of `KINDS`; kinds that do not occur are left out."""
    counts = Counter(finding.kind for finding in findings)
    return {kind: counts[kind] for kind in KINDS if kind in counts}


def write_audit(audit: dict[str, Any], path: Path) -> None:
    """Write `Audit.as_dict()` as JSON.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_json(audit), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"The audit could not be written to {path}: {error.strerror or error}.",
            remedy="Choose another --out, or free some space.",
        ) from error


def as_json(audit: dict[str, Any]) -> str:
    """Return the text of `audit.json`."""
    return json.dumps(audit, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _counts(
    records: Sequence[Record],
    hashes: Sequence[str | None],
    pairs: Sequence[NearPair],
    groups: Sequence[Sequence[int]],
    pictures: Sequence[int],
) -> dict[str, Any]:
    copies = Counter(digest for digest in hashes if digest is not None)
    contradicting = contradictions(records, pictures)
    told = {i for group in contradicting for i in group}
    near = linked(len(records), [(p.first, p.second) for p in pairs], [str(p) for p in pictures])
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
        "contradictions_by_pair": pairs_of(records, contradicting),
        "contradicting_only_by_near_copies": sum(told.isdisjoint(group) for group in contradictions(records, near)),
        **leak_counts(records, hashes, pairs),
    }


@dataclass(frozen=True, eq=False)
class Material:
    """The records of a data set, then those of the other one that it is compared with, and their facts in that order.

    `cache` is the folder that keeps results, None to keep none.
    """

    own: tuple[Record, ...]
    others: tuple[Record, ...]
    facts: tuple[ImageFacts, ...]
    cache: Path | None

    @property
    def records(self) -> tuple[Record, ...]:
        return (*self.own, *self.others)

    @property
    def own_facts(self) -> tuple[ImageFacts, ...]:
        return self.facts[: len(self.own)]

    @cached_property
    def groups(self) -> list[int]:
        """The lesions and patients of the own records, see `data.groups.lesion_groups`."""
        return lesion_groups(self.own, [fact.sha256 for fact in self.own_facts])


@dataclass(frozen=True, eq=False)
class Vectors:
    """Embeddings float16 (n, d) of all records of a material, with the key of each row, "" where there is none."""

    values: Embeddings
    keys: list[str]
    version: str


def read_material(
    own: Sequence[Record], against: Dataset | None, name: str, cache: Path | None, console: Console
) -> Material:
    """Read each image once; those of the other data set are named by its folder, so that the two are told apart."""
    known = load_facts(cache / "facts.npz") if cache is not None else {}
    with track("Reading images", len(own), console) as advance:
        facts = read_facts(own, known=known, progress=advance)
    others: list[Record] = []
    if against is not None:
        other_name = against.root.name if against.root.name != name else f"other {against.root.name}"
        others = [replace(record, image=f"{other_name}/{record.image}") for record in against.records]
        with track("Reading the other images", len(others), console) as advance:
            facts += read_facts(others, known=known, progress=advance)
    if cache is not None:
        save_facts(cache / "facts.npz", facts)
    return Material(tuple(own), tuple(others), tuple(facts), cache)


def embeddings(material: Material, embedder: Embedder, console: Console) -> Vectors:
    """Embed all images."""
    path = material.cache / "embeddings.npz" if material.cache is not None else None
    known = load_embeddings(path, embedder.version) if path is not None else {}
    with track("Embedding images", _different(material.facts), console) as advance:
        values, keys = embed(material.records, material.facts, embedder.graph, known=known, progress=advance)
    if path is not None and not known.keys() >= set(keys) - {""}:
        save_embeddings(path, embedder.version, keys, values)
    return Vectors(values, keys, embedder.version)


def near_pairs(material: Material, vectors: Vectors | None, console: Console) -> list[NearPair]:
    """Return near duplicates among all records, by hash, then by embedding, sorted."""
    version = (VERSION, lookalikes.VERSION, vectors.version if vectors else None)
    return kept(
        material.cache,
        "pairs",
        contents_key(material.records, material.facts, *version),
        lambda: _compare(material, vectors, console),
        pack=lambda pairs: [asdict(pair) for pair in pairs],
        unpack=lambda rows: [NearPair(**{**row, "overlay": _overlay(row["overlay"])}) for row in rows],
    )


def find_shortcuts(material: Material, console: Console) -> Shortcuts | None:
    """Probe how well the class is told without the lesion."""

    def probe() -> Shortcuts | None:
        console.print("Looking for shortcuts ...", highlight=False)
        return probe_shortcuts(material.own, material.own_facts, material.groups)

    return kept(
        material.cache,
        "shortcuts",
        contents_key(material.own, material.own_facts, VERSION),
        probe,
        pack=lambda found: found.as_dict() if found else None,
        unpack=lambda row: Shortcuts(**{**row, "probes": tuple(Probe(**p) for p in row["probes"])}) if row else None,
    )


def find_suspects(material: Material, vectors: Vectors, pairs: Sequence[NearPair], console: Console) -> list[Suspect]:
    """Return labels that are likely wrong; near duplicates stay in one fold, as lesions do."""
    links = [(pair.first, pair.second) for pair in pairs]
    groups = linked(len(material.own), links, [str(group) for group in material.groups])

    def look() -> list[Suspect]:
        console.print("Looking for wrong labels ...", highlight=False)
        own = len(material.own)
        return label_suspects(material.own, vectors.values[:own], vectors.keys[:own], groups)

    return kept(
        material.cache,
        "suspects",
        contents_key(material.own, material.own_facts, suspects.VERSION, vectors.version, groups),
        look,
        pack=lambda found: [asdict(suspect) for suspect in found],
        unpack=lambda rows: [Suspect(**row) for row in rows],
    )


def find_artefacts(material: Material, console: Console) -> Artefacts:
    """Return how often hair, rulers, ink and dark corners stand on the images of each class."""
    path = material.cache / "artefacts.npz" if material.cache is not None else None
    known = load_artefacts(path) if path is not None else {}
    with track("Looking for hair, rulers, ink", _different(material.own_facts), console) as advance:
        found = read_artefacts(material.own, material.own_facts, known=known, progress=advance)
    if path is not None and not known.keys() >= found.keys():
        save_artefacts(path, found)
    return artefact_rates(material.own, material.own_facts, found, material.groups)


def _compare(material: Material, vectors: Vectors | None, console: Console) -> list[NearPair]:
    with track("Comparing images", _different(material.facts), console) as advance:
        pairs = near_duplicates(material.facts, progress=advance)
    if vectors is not None:
        candidates = lookalikes.candidates(material.records, material.facts, vectors.values, vectors.keys, pairs)
        with track("Laying look-alikes over each other", len(candidates), console, unit="pairs") as advance:
            pairs += lookalikes.confirmed(material.records, candidates, progress=advance)
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def _overlay(row: dict[str, Any] | None) -> Overlay | None:
    return Overlay(**row) if row else None


def _different(facts: Sequence[ImageFacts]) -> int:
    return len({fact.sha256 for fact in facts} - {None})
