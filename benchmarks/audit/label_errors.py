"""Ranking of likely label errors: 5 % of the labels of a clean set are made wrong, and looked for.

The clean set: the HAM10000 images whose diagnosis was confirmed by histopathology. Every image of a drawn lesion gets
the same wrong label. Precision at k is the share of made errors among the first k of the ranking; chance is the share
of made errors in the set. Intervals: 95 % from a bootstrap over lesions, seeds pooled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import CONSOLE
from benchmarks.report import markdown
from dermlens.audit.embed import Embedder, embed
from dermlens.audit.facts import read_facts
from dermlens.audit.labels import label_suspects
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Record, lesion_groups
from dermlens.data.tables import read_table
from dermlens.networks.embedder import VERSION, embedder_graph

AT = (20, 50, 100)
WAYS = {"drawn evenly from the other classes": False, "drawn as often as it occurs": True}


def run(*, data: Path, share: float = 0.05, seeds: int = 5) -> dict[str, Any]:
    """Return precision at k and the share found, by how the wrong labels are drawn."""
    records = _confirmed(data)
    facts = read_facts(records, cache=True)
    groups = lesion_groups(records, [f.sha256 for f in facts])
    vectors, keys = embed(records, facts, Embedder(embedder_graph(CONSOLE), VERSION), cache=True)

    def rank(by_size: bool) -> dict[str, Any]:
        hits: dict[int, list[tuple[int, bool]]] = {k: [] for k in AT}
        chance, found = [], []
        for seed in range(seeds):
            spoiled, wrong = _spoil(records, groups, share, seed, by_size)
            order = [s.image for s in label_suspects(spoiled, vectors, keys, groups, seed=seed)]
            chance.append(wrong.mean())
            found.append(wrong[order].sum() / wrong.sum())
            for k in AT:
                hits[k] += [(groups[i] * seeds + seed, bool(wrong[i])) for i in order[:k]]
        return {
            "precision": {str(k): _precision(pairs) for k, pairs in hits.items()},
            "chance": float(np.mean(chance)),
            "found": float(np.mean(found)),
        }

    ways = {name: rank(by_size) for name, by_size in WAYS.items()}
    return {"images": len(records), "lesions": len(set(groups)), "share": share, "seeds": seeds, "ways": ways}


def _precision(hits: Sequence[tuple[int, bool]]) -> dict[str, float]:
    low, high = _interval(list(hits))
    return {"value": float(np.mean([hit for _, hit in hits])), "low": low, "high": high}


def _confirmed(data: Path) -> list[Record]:
    """Return the images of HAM10000 with `dx_type` histo."""
    table = read_table(data / "ham10000" / "HAM10000_metadata.csv")
    histo = {row["image_id"] for row in table.rows if row["dx_type"] == "histo"}
    return [r for r in read_dataset(data / "ham10000").records if r.isic_id in histo]


def _spoil(
    records: list[Record], groups: list[int], share: float, seed: int, by_size: bool = False
) -> tuple[list[Record], np.ndarray]:
    """Return the records with wrong labels for `share` of the lesions, and which images those are.

    Args:
        by_size: draw wrong labels as often as they occur, not evenly: a rare label is then no sign of an error.
    """
    rng = np.random.default_rng(seed)
    sizes = Counter(r.diagnosis for r in records)
    names = sorted(sizes)
    every = sorted(set(groups))
    drawn = rng.choice(every, round(share * len(every)), replace=False)
    label_of = {r_group: r.diagnosis for r, r_group in zip(records, groups, strict=True)}
    wrong = {}
    for group in drawn.tolist():
        chances = np.array([0 if n == label_of[group] else sizes[n] if by_size else 1 for n in names], float)
        wrong[group] = str(rng.choice(names, p=chances / chances.sum()))
    spoiled = [replace(r, diagnosis=wrong.get(g, r.diagnosis)) for r, g in zip(records, groups, strict=True)]
    return spoiled, np.array([g in wrong for g in groups])


def _interval(hits: list[tuple[int, bool]], rounds: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the share of hits, drawing lesions anew."""
    rng = np.random.default_rng(0)
    lesions = sorted({lesion for lesion, _ in hits})
    place = {lesion: i for i, lesion in enumerate(lesions)}
    right, all_of = np.zeros(len(lesions)), np.zeros(len(lesions))
    for lesion, hit in hits:
        right[place[lesion]] += hit
        all_of[place[lesion]] += 1
    drawn = rng.integers(0, len(lesions), (rounds, len(lesions)))
    shares = right[drawn].sum(axis=1) / all_of[drawn].sum(axis=1)
    low, high = np.percentile(shares, (2.5, 97.5))
    return float(low), float(high)


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each k, and a column for each way of drawing."""
    ways = found["ways"].values()
    rows: list[list[Any]] = [[f"precision of the first {k}", *(way["precision"][str(k)] for way in ways)] for k in AT]
    rows.append(["chance", *(f"{way['chance']:.3f}" for way in ways)])
    rows.append(["share of all wrong labels among the suspects", *(f"{way['found']:.3f}" for way in ways)])
    said = (
        f"{found['images']:,} images of {found['lesions']:,} lesions, {found['share']:.0%} of the lesions mislabelled"
    )
    return f"{said}; wrong label:\n\n{markdown(['', *found['ways']], rows)}"
