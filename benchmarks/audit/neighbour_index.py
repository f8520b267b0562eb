"""Nearest neighbours at 100,000 embeddings and more: time, memory and recall of the index against comparing all.

The embeddings are those of HAM10000, repeated with noise: each copy stands about as far from its source as a changed
copy of an image does (cosine 0.95), so that neighbourhoods are as crowded as those of real images.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.audit.near_duplicates import read_pool
from benchmarks.fresh import memory_mb
from benchmarks.report import markdown
from dermlens.audit.lookalikes import NEIGHBOURS, nearest, unit

LIKENESS = 0.95


def run(*, data: Path, count: int = 100_000, queries: int = 500, seed: int = 0) -> dict[str, Any]:
    """Return time, memory and recall."""
    vectors = _tiled(unit(read_pool(data).vectors), count, seed)
    start, busy = time.perf_counter(), time.process_time()
    places, _ = nearest(vectors, NEIGHBOURS, exact=False)
    taken = {"seconds": time.perf_counter() - start, "processor_s": time.process_time() - busy, "peak_mb": memory_mb()}
    drawn = np.sort(np.random.default_rng(seed).choice(len(vectors), queries, replace=False))
    start = time.perf_counter()
    right = _exact(vectors, drawn)
    all_pairs_s = (time.perf_counter() - start) * len(vectors) / len(drawn)
    found = [len(set(places[i].tolist()) & set(row.tolist())) / NEIGHBOURS for i, row in zip(drawn, right, strict=True)]
    return {
        "count": count,
        "neighbours": NEIGHBOURS,
        **taken,
        "all_pairs_s": all_pairs_s,
        "queries": queries,
        "recall": float(np.mean(found)),
    }


def _tiled(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
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


def _exact(vectors: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the exact neighbours of some vectors, nearest first, in blocks of the rest."""
    queries = vectors[drawn].astype(np.float32)
    likeness = np.empty((len(drawn), len(vectors)), np.float32)
    for start in range(0, len(vectors), 8192):
        likeness[:, start : start + 8192] = queries @ vectors[start : start + 8192].astype(np.float32).T
    likeness[np.arange(len(drawn)), drawn] = -2
    return np.argsort(-likeness, axis=1)[:, :NEIGHBOURS]


def table(found: Mapping[str, Any]) -> str:
    """Return time, memory and recall as one line."""
    header = [f"nearest {found['neighbours']} of each of {found['count']:,} embeddings", "index", "comparing all"]
    return markdown(
        header,
        [
            ["seconds", f"{found['seconds']:.0f}", f"{found['all_pairs_s']:.0f}"],
            ["peak memory of the process, MB", f"{found['peak_mb']:.0f}", ""],
            [f"recall on {found['queries']} of them", f"{found['recall']:.3f}", "1"],
        ],
    )
