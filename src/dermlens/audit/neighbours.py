"""Nearest neighbours among embeddings: exact in blocks up to some ten thousand, by an index of neighbours above."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

EXACT_UP_TO = 20_000
_BLOCK_VALUES = 8_000_000  # similarities held at once: 32 MB, however many images there are
_ADD = 4096
_CONNECTIVITY, _EXPAND_ADD, _EXPAND_SEARCH = 16, 128, 64
_DIMENSIONS, _SAMPLE = 128, 8192
_MORE = 4  # times as many are fetched in few dimensions as are wanted

Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]
Advance = Callable[[int], None] | None


def unit(vectors: Vectors) -> npt.NDArray[np.float16]:
    """Return the vectors at length 1, float16 (n, d); zero stays zero."""
    result = np.empty(vectors.shape, np.float16)
    for start in range(0, len(vectors), _ADD):
        part = vectors[start : start + _ADD].astype(np.float32)
        result[start : start + _ADD] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6)
    return result


def nearest(
    vectors: npt.NDArray[np.float16], count: int, progress: Advance = None, *, exact: bool | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the `count` nearest others of each vector, nearest first, and their cosine similarity.

    Args:
        vectors: (n, d) of length 1, from `unit`.
        progress: called with the number of vectors just done.
        exact: compare all with all; by default up to `EXACT_UP_TO` vectors.

    Returns:
        Two arrays (n, min(count, n - 1)); where an index knows fewer, the place is -1 with similarity -1.
    """
    count = max(0, min(count, len(vectors) - 1))
    if count == 0:
        return np.zeros((len(vectors), 0), np.int64), np.zeros((len(vectors), 0), np.float32)
    if exact if exact is not None else len(vectors) <= EXACT_UP_TO:
        return _exact(vectors, count, progress)
    return _indexed(vectors, count, progress)


def _exact(
    vectors: npt.NDArray[np.float16], count: int, progress: Advance
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    n = len(vectors)
    places = np.empty((n, count), np.int64)
    likeness = np.empty((n, count), np.float32)
    step = max(1, min(512, _BLOCK_VALUES // n))
    all_vectors = vectors.astype(np.float32)
    for start in range(0, n, step):
        block = all_vectors[start : start + step] @ all_vectors.T
        rows = np.arange(len(block))
        block[rows, start + rows] = -2
        some = np.argpartition(-block, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(block, some, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        places[start : start + step] = np.take_along_axis(some, order, axis=1)
        likeness[start : start + step] = np.take_along_axis(values, order, axis=1)
        if progress is not None:
            progress(len(block))
    return places, likeness


def _indexed(
    vectors: npt.NDArray[np.float16], count: int, progress: Advance
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Search a graph of neighbours (HNSW, Malkov and Yashunin 2018, by usearch) in fewer dimensions; it misses a few.

    What it finds is put in order by the whole vectors.
    """
    from usearch.index import Index

    n, step = len(vectors), _ADD
    low = _reduced(vectors)
    index = Index(
        ndim=low.shape[1],
        metric="ip",
        dtype="f16",
        connectivity=_CONNECTIVITY,
        expansion_add=_EXPAND_ADD,
        expansion_search=_EXPAND_SEARCH,
    )
    for start in range(0, n, step):
        part = low[start : start + step]
        index.add(np.arange(start, start + len(part)), part)
        if progress is not None:
            progress(len(part) // 2)
    places = np.full((n, count), -1, np.int64)
    likeness = np.full((n, count), -1, np.float32)
    for start in range(0, n, step):
        part = low[start : start + step]
        found: Any = index.search(part, _MORE * count + 1)
        for row in range(len(part)):
            keys = found.keys[row, : found.counts[row]].astype(np.int64)
            keys = keys[keys != start + row]
            values = vectors[keys].astype(np.float32) @ vectors[start + row].astype(np.float32)
            order = np.argsort(-values, kind="stable")[:count]
            places[start + row, : len(order)] = keys[order]
            likeness[start + row, : len(order)] = values[order]
        if progress is not None:
            progress(len(part) - len(part) // 2)
    return places, likeness


def _reduced(vectors: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
    """Return the vectors along the directions in which a sample of them lies, at length 1."""
    size = min(_DIMENSIONS, vectors.shape[1])
    sample = vectors[:: max(1, len(vectors) // _SAMPLE)].astype(np.float32)
    sample -= sample.mean(axis=0)
    _, directions = np.linalg.eigh(sample.T @ sample)
    basis = directions[:, -size:]
    result = np.empty((len(vectors), size), np.float16)
    for start in range(0, len(vectors), _ADD):
        result[start : start + _ADD] = vectors[start : start + _ADD].astype(np.float32) @ basis
    return unit(result)
