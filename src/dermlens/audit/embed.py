"""Embeddings of images by a network in an OpenVINO graph: images that look alike have similar embeddings.

The graph comes from the caller (`networks/embedder.py`), since the audit must not know how networks are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache as cache_calls
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from dermlens.audit.cache import Store, for_each_content
from dermlens.audit.facts import ImageFacts
from dermlens.data.images import InputSpec, Pixels, load_image
from dermlens.data.records import Record
from dermlens.errors import DermlensError
from dermlens.inference.runtime import compile_graph, run_batches
from dermlens.reporting.progress import Advance

Embeddings = npt.NDArray[np.float16]

SPEC = InputSpec(size_px=224)
BATCH = 32
_THREADS = 2
_BLANK = np.zeros((SPEC.size_px, SPEC.size_px, 3), np.uint8)


@dataclass(frozen=True)
class Embedder:
    """An OpenVINO graph, uint8 (n, 224, 224, 3) in, (n, d) out, and a name that changes with its weights."""

    graph: Path
    version: str


def embed(
    records: Sequence[Record],
    facts: Sequence[ImageFacts],
    embedder: Embedder,
    *,
    cache: bool = False,
    progress: Advance | None = None,
) -> tuple[Embeddings, list[str]]:
    """Return float16 (n, d) embeddings and the key of each row; rows of unreadable images are zero, with key "".

    Each different file runs through the network once.

    Args:
        records, facts: n images.
        cache: keep the embeddings by content in the user's cache.
    """
    keys = [key_of(record, fact) for record, fact in zip(records, facts, strict=True)]
    store: Store[bytes] = Store(f"embeddings {embedder.version}", bytes, enabled=cache)
    network = cache_calls(lambda: compile_graph(ov.Core().read_model(embedder.graph), batch=BATCH))
    found = for_each_content(keys, store, lambda part: _embed_part([records[i] for i in part], network()), progress)
    size = len(next(iter(found.values()))) // 2 if found else 0
    result = np.zeros((len(records), size), np.float16)
    for index, key in enumerate(keys):
        if key in found:
            result[index] = np.frombuffer(found[key], np.float16)
        else:
            keys[index] = ""
    return result, keys


def key_of(record: Record, fact: ImageFacts) -> str:
    """Return what an embedding depends on: the file's content, and the frame that it is stretched to."""
    if fact.sha256 is None:
        return ""
    return fact.sha256 if record.frame_aspect is None else f"{fact.sha256} {record.frame_aspect:.4f}"


def _embed_part(records: Sequence[Record], compiled: ov.CompiledModel) -> Iterator[bytes | None]:
    """Yield the embedding of each record, None for a file that can no longer be read; two batches are in memory."""
    with ThreadPoolExecutor(_THREADS) as pool:
        following = [pool.submit(_pixels, record) for record in records[:BATCH]]
        for start in range(0, len(records), BATCH):
            images = [future.result() for future in following]
            following = [pool.submit(_pixels, record) for record in records[start + BATCH : start + 2 * BATCH]]
            vectors = run_batches(compiled, np.stack([_BLANK if image is None else image for image in images]))
            for image, vector in zip(images, vectors.astype(np.float16), strict=True):
                yield None if image is None else vector.tobytes()


def _pixels(record: Record) -> Pixels | None:
    try:
        return load_image(record.path, SPEC, frame_aspect=record.frame_aspect)
    except DermlensError:
        return None
