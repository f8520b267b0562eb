"""Nearest neighbours at 100,000 embeddings and more: time, memory and recall of the index against comparing all.

    DERMLENS_DATA=/path/to/data python benchmarks/neighbours.py [--count 100000] [--queries 500] [--cache FOLDER]

The embeddings are those of HAM10000, repeated with noise: each copy stands about as far from its source as a changed
copy of an image does (cosine 0.95), so that neighbourhoods are as crowded as those of real images.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from dermlens.audit.embed import embed, load_embeddings
from dermlens.audit.facts import read_facts
from dermlens.audit.lookalikes import NEIGHBOURS, nearest, unit
from dermlens.data.manifest import read_dataset
from dermlens.networks.embedder import VERSION, embedder_graph

LIKENESS = 0.95


def real_embeddings(data: Path, cache: Path | None) -> np.ndarray:
    known = load_embeddings(cache / "embeddings.npz", VERSION) if cache else {}
    if known:
        return np.array(list(known.values()))
    records = read_dataset(data / "ham10000").records
    return embed(records, read_facts(records), embedder_graph(Console(stderr=True)))[0]


def tiled(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return `count` unit vectors float16: the given ones, then copies of them with noise."""
    rng = np.random.default_rng(seed)
    result = np.empty((count, vectors.shape[1]), np.float16)
    noise = np.sqrt(1 / LIKENESS**2 - 1)
    for start in range(0, count, len(vectors)):
        part = vectors[: count - start].astype(np.float32)
        if start:
            away = rng.normal(0, 1, part.shape).astype(np.float32)
            part = part + noise * away / np.linalg.norm(away, axis=1, keepdims=True)
        result[start : start + len(part)] = unit(part)
    return result


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500, help="vectors that are compared with all for the recall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder with embeddings.npz of an audit of HAM10000")
    options = parser.parse_args()
    data = os.environ.get("DERMLENS_DATA")
    if not data:
        print("Not run: it needs DERMLENS_DATA, the folder with ham10000/.")
        return
    vectors = tiled(unit(real_embeddings(Path(data), options.cache)), options.count, options.seed)
    start, busy = time.perf_counter(), time.process_time()
    places, _ = nearest(vectors, NEIGHBOURS, exact=False)
    seconds, work = time.perf_counter() - start, time.process_time() - busy
    peak = megabytes()
    drawn = np.sort(np.random.default_rng(options.seed).choice(len(vectors), options.queries, replace=False))
    start = time.perf_counter()
    right = exact_of(vectors, drawn)
    all_pairs = (time.perf_counter() - start) * len(vectors) / len(drawn)
    found = [len(set(places[i].tolist()) & set(row.tolist())) / NEIGHBOURS for i, row in zip(drawn, right, strict=True)]
    print(f"{len(vectors):,} embeddings of {vectors.shape[1]} values ({vectors.nbytes / 2**20:.0f} MB), {NEIGHBOURS}")
    print(f"neighbours each: {seconds:.0f} s ({work:.0f} s of processor); the process took {peak:.0f} MB at most.")
    print(f"Comparing all with all would take {all_pairs:.0f} s. Recall on {len(drawn)} of them: {np.mean(found):.3f};")
    nearest_found = np.mean([row[0] in places[i] for i, row in zip(drawn, right, strict=True)])
    print(f"the nearest one is found for {nearest_found:.3f}.")


def exact_of(vectors: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the exact neighbours of some vectors, nearest first, in blocks of the rest."""
    queries = vectors[drawn].astype(np.float32)
    likeness = np.empty((len(drawn), len(vectors)), np.float32)
    for start in range(0, len(vectors), 8192):
        likeness[:, start : start + 8192] = queries @ vectors[start : start + 8192].astype(np.float32).T
    likeness[np.arange(len(drawn)), drawn] = -2
    return np.argsort(-likeness, axis=1)[:, :NEIGHBOURS]


if __name__ == "__main__":
    main()
