"""Near duplicates that a hash misses, cropped or tilted: nearest neighbours by embedding, confirmed by an overlay.

Metadata counts: two pictures of one lesion with different ISIC ids are two photographs. Zoomed in or out on the same
spot, they can agree as a crop does, and no comparison of pixels distinguishes them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from dermlens.audit.duplicates import NearPair, group_near
from dermlens.audit.facts import ImageFacts, first_of_each
from dermlens.audit.geometry import SPEC, Overlay, Sketch, overlay, sketch
from dermlens.data.images import load_image
from dermlens.data.records import Record, picture_groups
from dermlens.errors import DermlensError
from dermlens.reporting.progress import Advance

VERSION = "1"
"""Raise it when this module or `geometry.py` would find other pairs."""

NEIGHBOURS = 8
MIN_LIKENESS = 0.8
MIN_CORRELATION = 0.95
MIN_WORST = 0.9
MIN_OVERLAP = 0.3
_THREADS = 2
_CHUNK = 1024
_MAX_SKETCHES = 8192  # held at once: 350 MB at most

EXACT_UP_TO = 20_000
_BLOCK_VALUES = 8_000_000  # similarities held at once: 32 MB, however many images there are
_ADD = 4096
_CONNECTIVITY, _EXPAND_ADD, _EXPAND_SEARCH = 16, 128, 64
_DIMENSIONS, _SAMPLE = 128, 8192
_MORE = 4  # times as many are fetched in few dimensions as are wanted

Pair = tuple[int, int]
Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]


def confirmed(records: Sequence[Record], pairs: Sequence[Pair], *, progress: Advance | None = None) -> list[NearPair]:
    """Lay the two images of each candidate over each other and return the pairs that are one photograph."""
    return [
        NearPair(first, second, int(lies.mirrored), -1, round(lies.correlation, 6), lies)
        for (first, second), lies in zip(pairs, overlays(records, pairs, progress), strict=True)
        if lies is not None and is_same(lies)
    ]


def is_same(lies: Overlay) -> bool:
    """Whether two images that lie over each other like this are one photograph."""
    return lies.correlation >= MIN_CORRELATION and lies.worst >= MIN_WORST and lies.overlap >= MIN_OVERLAP


def candidates(
    records: Sequence[Record],
    facts: Sequence[ImageFacts],
    vectors: npt.NDArray[np.float16],
    keys: Sequence[str],
    found: Sequence[NearPair] = (),
    *,
    exact: bool | None = None,
) -> list[Pair]:
    """Return pairs of different files that look alike, `first < second`, sorted.

    Args:
        records, facts: n images.
        vectors, keys: from `embed`.
        found: pairs that are known already; images that these connect are not compared again.
        exact: as for `nearest`.
    """
    chosen = np.array(first_of_each(keys, facts), np.int64)
    if len(chosen) < 2:
        return []
    places, likeness = nearest(unit(vectors[chosen]), NEIGHBOURS, exact=exact)
    rows, columns = np.nonzero((likeness >= MIN_LIKENESS) & (places >= 0))
    pairs = np.sort(np.stack([chosen[rows], chosen[places[rows, columns]]], axis=1), axis=1)
    same = group_near(picture_groups(records, [fact.sha256 for fact in facts]), found)
    return [
        (int(i), int(j))
        for i, j in np.unique(pairs, axis=0)
        if same[i] != same[j] and not _known_views(records[i], records[j])
    ]


def _known_views(one: Record, other: Record) -> bool:
    """Whether metadata says that the two are different photographs of one lesion."""
    ids = one.isic_id, other.isic_id
    return one.lesion_id is not None and one.lesion_id == other.lesion_id and None not in ids and ids[0] != ids[1]


def overlays(
    records: Sequence[Record], pairs: Sequence[Pair], progress: Advance | None = None
) -> Iterable[Overlay | None]:
    """Yield how the two images of each pair lie over each other, None where they cannot be brought together."""
    sketches: OrderedDict[int, Sketch | None] = OrderedDict()

    def draw(index: int) -> Sketch | None:
        try:
            return sketch(load_image(records[index].path, SPEC, frame_aspect=records[index].frame_aspect))
        except DermlensError:  # it has changed since its facts were read
            return None

    def lay(pair: Pair) -> Overlay | None:
        one, other = sketches[pair[0]], sketches[pair[1]]
        return None if one is None or other is None else overlay(one, other)

    with threadpool_limits(1), ThreadPoolExecutor(_THREADS) as pool:  # many small products: threads of BLAS only wait
        for start in range(0, len(pairs), _CHUNK):
            part = pairs[start : start + _CHUNK]
            needed = sorted({index for pair in part for index in pair})
            missing = [index for index in needed if index not in sketches]
            sketches.update(zip(missing, pool.map(draw, missing), strict=True))
            for index in needed:
                sketches.move_to_end(index)
            yield from pool.map(lay, part)
            while len(sketches) > _MAX_SKETCHES:
                sketches.popitem(last=False)
            if progress is not None:
                progress(len(part))


def unit(vectors: Vectors) -> npt.NDArray[np.float16]:
    """Return the vectors at length 1, float16 (n, d); zero stays zero."""
    result = np.empty(vectors.shape, np.float16)
    for start in range(0, len(vectors), _ADD):
        part = vectors[start : start + _ADD].astype(np.float32)
        result[start : start + _ADD] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6)
    return result


def nearest(
    vectors: npt.NDArray[np.float16], count: int, *, exact: bool | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the `count` nearest other vectors of each, nearest first, and their cosine similarity.

    Args:
        vectors: (n, d) of length 1, from `unit`.
        exact: compare all with all; the default up to `EXACT_UP_TO` vectors, above that an index is searched.

    Returns:
        Two arrays (n, min(count, n - 1)); where the index finds fewer, the place is -1 with similarity -1.
    """
    count = max(0, min(count, len(vectors) - 1))
    if count == 0:
        return np.zeros((len(vectors), 0), np.int64), np.zeros((len(vectors), 0), np.float32)
    if exact if exact is not None else len(vectors) <= EXACT_UP_TO:
        return _exact(vectors, count)
    return _indexed(vectors, count)


def _exact(vectors: npt.NDArray[np.float16], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
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
    return places, likeness


def _indexed(vectors: npt.NDArray[np.float16], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Search a graph of neighbours (HNSW, Malkov and Yashunin 2018, by usearch) in fewer dimensions; it misses a few.

    What it finds is sorted by the whole vectors.
    """
    from usearch.index import Index

    n, low = len(vectors), _reduced(vectors)
    index = Index(
        ndim=low.shape[1],
        metric="ip",
        dtype="f16",
        connectivity=_CONNECTIVITY,
        expansion_add=_EXPAND_ADD,
        expansion_search=_EXPAND_SEARCH,
    )
    index.add(np.arange(n), low)
    found: Any = index.search(low, _MORE * count + 1)
    places, likeness = np.full((n, count), -1, np.int64), np.full((n, count), -1, np.float32)
    for row in range(n):
        keys = found.keys[row, : found.counts[row]].astype(np.int64)
        keys = keys[keys != row]
        values = vectors[keys].astype(np.float32) @ vectors[row].astype(np.float32)
        order = np.argsort(-values, kind="stable")[:count]
        places[row, : len(order)], likeness[row, : len(order)] = keys[order], values[order]
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
