"""Ranking of likely label errors: 5 % of the labels of a clean set are made wrong, and looked for.

    DERMLENS_DATA=/path/to/data python benchmarks/label_errors.py [--share 0.05] [--seeds 5]

The clean set: the HAM10000 images whose diagnosis was confirmed by histopathology. Every image of a drawn lesion gets
the same wrong label. Precision at k is the share of made errors among the first k of the
ranking; chance is the share of made errors in the set. Intervals: 95 % from a bootstrap over lesions, seeds pooled.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from dermlens.audit.embed import embed, load_embeddings
from dermlens.audit.facts import read_facts
from dermlens.audit.labels import label_suspects
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Record, lesion_groups
from dermlens.data.tables import read_table
from dermlens.networks.embedder import VERSION, embedder_graph

AT = (20, 50, 100)


def confirmed(data: Path) -> list[Record]:
    """Return the images of HAM10000 with `dx_type` histo."""
    table = read_table(data / "ham10000" / "HAM10000_metadata.csv")
    histo = {row["image_id"] for row in table.rows if row["dx_type"] == "histo"}
    return [r for r in read_dataset(data / "ham10000").records if r.isic_id in histo]


def spoil(
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


def interval(hits: list[tuple[int, bool]], rounds: int = 2000) -> tuple[float, float]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="folder with embeddings.npz of an audit of HAM10000")
    options = parser.parse_args()
    data = os.environ.get("DERMLENS_DATA")
    if not data:
        print("Not run: it needs DERMLENS_DATA, the folder with ham10000/.")
        return
    records = confirmed(Path(data))
    facts = read_facts(records)
    groups = lesion_groups(records, [f.sha256 for f in facts])
    known = load_embeddings(options.cache / "embeddings.npz", VERSION) if options.cache else {}
    vectors, keys = embed(records, facts, embedder_graph(Console(stderr=True)), known=known)
    print(f"{len(records)} images of {len(set(groups))} lesions, {options.share:.0%} of the lesions mislabelled,")
    print(f"seeds 0 to {options.seeds - 1}.")
    for by_size, how in (
        (False, "any other class, drawn evenly"),
        (True, "another class, drawn as often as it occurs"),
    ):
        print(f"\nThe wrong label is {how}:\n")
        rank(records, groups, vectors, keys, options.share, options.seeds, by_size)


def rank(
    records: list[Record],
    groups: list[int],
    vectors: np.ndarray,
    keys: list[str],
    share: float,
    seeds: int,
    by_size: bool,
) -> None:
    """Print precision at k over the seeds."""
    hits: dict[int, list[tuple[int, bool]]] = {k: [] for k in AT}
    chance, found, told, seconds = [], [], [], []
    for seed in range(seeds):
        spoiled, wrong = spoil(records, groups, share, seed, by_size)
        start = time.perf_counter()
        order = [s.image for s in label_suspects(spoiled, vectors, keys, groups, seed=seed)]
        seconds.append(time.perf_counter() - start)
        chance.append(wrong.mean())
        told.append(len(order))
        found.append(wrong[order].sum() / wrong.sum())
        for k in AT:
            hits[k] += [(groups[i] * seeds + seed, bool(wrong[i])) for i in order[:k]]
    print("| | precision | 95 % interval |\n|---|---|---|")
    for k in AT:
        low, high = interval(hits[k])
        print(f"| first {k} | {np.mean([hit for _, hit in hits[k]]):.3f} | [{low:.3f}, {high:.3f}] |")
    print(f"| chance | {np.mean(chance):.3f} | |")
    print(f"\nOn average {np.mean(told):.0f} images are called suspect: {np.mean(found):.3f} of the made errors;")
    print(f"{np.mean(seconds):.1f} s a ranking.", flush=True)


if __name__ == "__main__":
    main()
