"""Embeddings of images by a network in an OpenVINO graph, kept by content: what looks alike lies close together.

The graph comes from the caller (`networks/embedder.py`), since the audit must not know how networks are made.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from dermlens.audit.facts import ImageFacts
from dermlens.data.images import InputSpec, load_image
from dermlens.data.records import Record
from dermlens.errors import DermlensError

Embeddings = npt.NDArray[np.float16]

SPEC = InputSpec(size_px=224)
BATCH = 32
_THREADS = 2


@dataclass(frozen=True)
class Embedder:
    """An OpenVINO graph, uint8 (n, 224, 224, 3) in, (n, d) out, and a word that changes with its weights."""

    graph: Path
    version: str


def embed(
    records: Sequence[Record],
    facts: Sequence[ImageFacts],
    graph: Path,
    *,
    known: Mapping[str, Embeddings] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Embeddings, list[str]]:
    """Return float16 (n, d) embeddings and the key of each row; rows of unreadable images are zero, with key "".

    Each different file runs through the network once. Images are held a batch at a time.

    Args:
        records, facts: n images.
        graph: of an `Embedder`.
        known: embeddings by key, of an earlier audit.
        progress: called with the number of different files just done.
    """
    keys = [key_of(record, fact) for record, fact in zip(records, facts, strict=True)]
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key:
            first.setdefault(key, index)
    found = dict(known or {})
    missing = [index for key, index in first.items() if key not in found]
    if progress is not None:
        progress(len(first) - len(missing))
    if missing:
        for index, vector in _run(missing, records, graph, progress):
            found[keys[index]] = vector
    size = len(next(iter(found.values()))) if found else 0
    result = np.zeros((len(records), size), np.float16)
    for index, key in enumerate(keys):
        if key in found:
            result[index] = found[key]
        else:
            keys[index] = ""
    return result, keys


def key_of(record: Record, fact: ImageFacts) -> str:
    """Return what an embedding depends on: the file's content, and the frame that it is stretched to."""
    if fact.sha256 is None:
        return ""
    return fact.sha256 if record.frame_aspect is None else f"{fact.sha256} {record.frame_aspect:.4f}"


def load_embeddings(path: Path, version: str) -> dict[str, Embeddings]:
    """Return the embeddings in a cache by key; empty where there is none of this version that can be used."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["version"]) != version or file["vectors"].dtype != np.float16:
                return {}
            keys, vectors = file["keys"], file["vectors"]
        return dict(zip((str(key) for key in keys), vectors, strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def save_embeddings(path: Path, version: str, keys: Sequence[str], vectors: Embeddings) -> None:
    """Write embeddings; a disk that is full costs the cache and nothing else."""
    rows = list({key: row for row, key in enumerate(keys) if key}.values())
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = np.array([keys[row] for row in rows], np.str_)
        np.savez(unfinished, version=np.array(version), keys=names, vectors=vectors[rows])
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()


def _run(
    indices: Sequence[int], records: Sequence[Record], graph: Path, progress: Callable[[int], None] | None
) -> Iterator[tuple[int, Embeddings]]:
    compiled = _compiled(graph)

    def pixels_of(index: int) -> npt.NDArray[np.uint8] | None:
        try:
            return load_image(records[index].path, SPEC, frame_aspect=records[index].frame_aspect)
        except DermlensError:  # it has changed since its facts were read
            return None

    starts = range(0, len(indices), BATCH)
    with ThreadPoolExecutor(_THREADS) as pool:
        following = [pool.submit(pixels_of, i) for i in indices[:BATCH]]
        for start in starts:
            images = [future.result() for future in following]
            following = [pool.submit(pixels_of, i) for i in indices[start + BATCH : start + 2 * BATCH]]
            batch = np.zeros((BATCH, SPEC.size_px, SPEC.size_px, 3), np.uint8)
            for place, image in enumerate(images):
                if image is not None:
                    batch[place] = image
            vectors = compiled(batch, share_inputs=True)[0].astype(np.float16)
            for place, image in enumerate(images):
                if image is not None:
                    yield indices[start + place], vectors[place]
            if progress is not None:
                progress(len(images))


def _compiled(graph: Path) -> ov.CompiledModel:
    core = ov.Core()
    model = core.read_model(graph)
    shape = model.input(0).get_partial_shape()
    shape[0] = BATCH
    model.reshape(shape)
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"})
