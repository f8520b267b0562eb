"""Near-duplicate search: recall on changed copies of HAM10000 images, and what else it takes for the same picture.

Each change is made to the same images and searched for among all of HAM10000, by perceptual hash alone and with the
neighbours in an embedding, laid over each other. A pair that is found counts as right when it is an image and its own
changed copy; a copy paired with another lesion is wrong. Hard negatives are the real second views: other photographs
of a lesion. They are looked at twice: as the audit does, which believes metadata, and blindly, by pixels alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import CONSOLE
from benchmarks.report import markdown
from dermlens.audit.duplicates import NearPair, near_duplicates
from dermlens.audit.embed import Embedder, embed
from dermlens.audit.facts import ImageFacts, facts_of, read_facts
from dermlens.audit.lookalikes import candidates, confirmed
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Record
from dermlens.networks.embedder import VERSION, embedder_graph

Change = Callable[[np.ndarray], np.ndarray]


def crop(share: float) -> Change:
    """Return a change that keeps the middle of an image, `share` of each side."""

    def change(image: np.ndarray) -> np.ndarray:
        edge_y, edge_x = (round(side * (1 - share) / 2) for side in image.shape[:2])
        return image[edge_y : image.shape[0] - edge_y, edge_x : image.shape[1] - edge_x]

    return change


def tilt(degrees: float) -> Change:
    """Return a change that turns an image about its middle."""

    def change(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
        return cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT)

    return change


CHANGES: dict[str, tuple[Change, int]] = {
    "recompressed, quality 30": (lambda image: image, 30),
    "half the size": (lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), 90),
    "squashed to 4:3": (lambda image: cv2.resize(image, (224, 168), interpolation=cv2.INTER_AREA), 90),
    "quarter turn": (lambda image: np.rot90(image), 90),
    "mirrored": (lambda image: image[:, ::-1], 90),
    "tilted by 5 degrees": (tilt(5), 90),
    "tilted by 10 degrees": (tilt(10), 90),
    "tilted by 15 degrees": (tilt(15), 90),
    "cropped to 95 %": (crop(0.95), 90),
    "cropped to 90 %": (crop(0.9), 90),
    "cropped to 80 %": (crop(0.8), 90),
    "cropped to 90 %, quality 30": (crop(0.9), 30),
    "mirrored, cropped to 85 %, tilted by 10 degrees": (lambda image: tilt(10)(crop(0.85)(image[:, ::-1])), 90),
    "brighter, warmer": (lambda im: np.clip(im * np.array([0.95, 1.05, 1.12]) + 6, 0, 255).astype(np.uint8), 90),
    "grey": (lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), 90),
}
CHOICES = {"changes": tuple(CHANGES)}


@dataclass(frozen=True)
class Pool:
    """HAM10000 with facts and embeddings; what is searched in."""

    records: list[Record]
    facts: list[ImageFacts]
    vectors: np.ndarray
    keys: list[str]


def run(
    *,
    data: Path,
    copies: int = 200,
    blind: int = 600,
    changes: tuple[str, ...] = tuple(CHANGES),
    seed: int = 0,
) -> dict[str, Any]:
    """Return recall by change, and what real second views are taken for; 0 copies or blind leaves a part out."""
    pool = read_pool(data)
    found: dict[str, Any] = {"images": len(pool.records), "copies": copies, "seed": seed}
    if copies:
        found["changes"] = _changes(pool, copies, seed, changes)
    if blind:
        found["second_views"] = _second_views(pool, blind, seed)
    return found


def read_pool(data: Path) -> Pool:
    """Read HAM10000; facts and embeddings are kept in the user's cache."""
    records = list(read_dataset(data / "ham10000").records)
    facts = read_facts(records, cache=True)
    vectors, keys = embed(records, facts, Embedder(embedder_graph(CONSOLE), VERSION), cache=True)
    return Pool(records, facts, vectors, keys)


def _changes(pool: Pool, copies: int, seed: int, wanted: tuple[str, ...]) -> dict[str, Any]:
    large = [i for i, record in enumerate(pool.records) if record.source == "images_224"]
    chosen = sorted(np.random.default_rng(seed).choice(large, copies, replace=False).tolist())
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for change in wanted:
            altered = changed([pool.records[i] for i in chosen], *CHANGES[change], Path(folder))
            by_hash, both = _search(pool, altered)
            found[change] = {"by hash": _score(pool, chosen, by_hash), "in all": _score(pool, chosen, both)}
            CONSOLE.print(f"{change}: {found[change]}", highlight=False)
    return found


def changed(records: Sequence[Record], alter: Change, quality: int, folder: Path) -> list[Record]:
    """Write changed copies as JPEG; they have no metadata that could give them away."""
    copies = []
    for number, record in enumerate(records):
        path = folder / f"{number}.jpg"
        picture = cv2.imread(str(record.path))
        if picture is None:
            raise SystemExit(f"OpenCV cannot read {record.path}.")
        pixels = np.ascontiguousarray(alter(picture))
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        copies.append(Record(path, record.image, record.diagnosis, frame_aspect=record.frame_aspect))
    return copies


def _search(pool: Pool, copies: list[Record]) -> tuple[list[NearPair], list[NearPair]]:
    """Return the pairs of a copy and an image of the pool: by hash alone, and by hash or embedding."""
    facts = [facts_of(copy) for copy in copies]
    vectors, keys = embed(copies, facts, Embedder(embedder_graph(CONSOLE), VERSION))
    n = len(copies)
    every_fact, every_record = [*facts, *pool.facts], [*copies, *pool.records]
    by_hash = [p for p in near_duplicates(every_record, every_fact) if p.first < n <= p.second]
    every_vector, every_key = np.concatenate([vectors, pool.vectors]), [*keys, *pool.keys]
    pairs = candidates(every_record, every_fact, every_vector, every_key, by_hash)
    return by_hash, by_hash + confirmed(every_record, [p for p in pairs if p[0] < n <= p[1]])


def _score(pool: Pool, chosen: list[int], pairs: list[NearPair]) -> dict[str, float]:
    found = [(chosen[p.first], p.second - len(chosen)) for p in pairs]
    right = len({one for one, other in found if one == other})
    wrong = sum(pool.records[one].lesion_id != pool.records[other].lesion_id for one, other in found)
    return {"recall": right / len(chosen), "wrong": wrong}


def _second_views(pool: Pool, blind: int, seed: int) -> dict[str, Any]:
    """Return how many real second views are taken for the same picture, by hash, by embedding, and blindly."""
    start = time.process_time()
    by_hash = near_duplicates(pool.records, pool.facts)
    pairs = candidates(pool.records, pool.facts, pool.vectors, pool.keys, by_hash)
    laid = confirmed(pool.records, pairs)
    seconds = time.process_time() - start
    lesion = [record.lesion_id for record in pool.records]
    other = [p for p in laid if lesion[p.first] != lesion[p.second]]
    views: dict[str | None, list[int]] = {}
    for index, name in enumerate(lesion):
        views.setdefault(name, []).append(index)
    real = [(i, j) for group in views.values() for n, i in enumerate(group) for j in group[n + 1 :]]
    drawn = sorted(np.random.default_rng(seed).choice(len(real), blind, replace=False).tolist())
    return {
        "candidates": len(pairs),
        "processor_s": seconds,
        "of_other_lesions": [f"{pool.records[p.first].isic_id}/{pool.records[p.second].isic_id}" for p in other],
        "real_pairs": len(real),
        "real_by_hash": sum(lesion[p.first] == lesion[p.second] for p in by_hash),
        "blind": blind,
        "blind_taken": len(confirmed(pool.records, [real[i] for i in drawn])),
    }


def table(found: Mapping[str, Any]) -> str:
    """Return recall by change, and what second views are taken for."""
    parts = []
    if "changes" in found:
        wrong = sum(way["wrong"] for row in found["changes"].values() for way in row.values())
        same: dict[tuple[str, ...], list[str]] = {}
        for change, row in found["changes"].items():
            same.setdefault(tuple(f"{row[way]['recall']:.3f}" for way in ("by hash", "in all")), []).append(change)
        rows = [["; ".join(changes), *recalls] for recalls, changes in same.items()]
        parts.append(markdown(["change", "recall by hash alone", "by hash or embedding"], rows))
        parts.append(
            f"{found['copies']} changed copies, searched for among all {found['images']:,} images; pairs of different "
            f"lesions: {wrong}."
        )
    if "second_views" in found:
        views = found["second_views"]
        parts.append(
            f"Among the images as they are, {views['candidates']:,} pairs of neighbours are laid over each other "
            f"({views['processor_s']:.0f} s of processor). Called one picture although their lesion ids differ: "
            f"{', '.join(views['of_other_lesions']) or 'none'}. Of {views['real_pairs']:,} real second views "
            f"{views['real_by_hash']} are taken for one picture by hash; blindly, by pixels alone, "
            f"{views['blind_taken']} of {views['blind']}."
        )
    return "\n\n".join(parts)
