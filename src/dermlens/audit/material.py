"""What an audit computes of a data set, each step shown, and kept by content so that a second audit takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from dermlens.audit import lookalikes, suspects
from dermlens.audit.artefacts import Artefacts, artefact_rates, load_artefacts, read_artefacts, save_artefacts
from dermlens.audit.cache import VERSION, load_facts, save_facts
from dermlens.audit.duplicates import NearPair, linked, near_duplicates
from dermlens.audit.embed import Embedder, Embeddings, embed, load_embeddings, save_embeddings
from dermlens.audit.facts import ImageFacts, read_facts
from dermlens.audit.geometry import Overlay
from dermlens.audit.results import contents_key, kept
from dermlens.audit.shortcuts import Probe, Shortcuts, probe_shortcuts
from dermlens.audit.suspects import Suspect, label_suspects
from dermlens.data.groups import lesion_groups
from dermlens.data.records import Dataset, Record
from dermlens.reporting.progress import track


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
