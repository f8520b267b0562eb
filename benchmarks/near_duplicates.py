"""Near-duplicate search: recall on changed copies of HAM10000 images, and what else it takes for the same picture.

    DERMLENS_DATA=/path/to/data python benchmarks/near_duplicates.py [--copies 200] [--blind 600] [--cache FOLDER]

Each change is made to the same images and searched for among all of HAM10000, by perceptual hash alone and with the
neighbours in an embedding, laid over each other. A pair that is found counts as right when it is an image and its own
changed copy; a copy paired with another lesion is wrong. Hard negatives are the real second views: other photographs
of a lesion. They are looked at twice: as the audit does, which believes metadata, and blindly, by pixels alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from dermlens.audit.cache import load_facts, save_facts
from dermlens.audit.duplicates import NearPair, near_duplicates
from dermlens.audit.embed import embed, load_embeddings, save_embeddings
from dermlens.audit.facts import ImageFacts, facts_of, read_facts
from dermlens.audit.lookalikes import candidates, confirmed
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Record
from dermlens.networks.embedder import VERSION as EMBEDDER
from dermlens.networks.embedder import embedder_graph


def crop(share: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change that keeps the middle of an image, `share` of each side."""

    def change(image: np.ndarray) -> np.ndarray:
        edge_y, edge_x = (round(side * (1 - share) / 2) for side in image.shape[:2])
        return image[edge_y : image.shape[0] - edge_y, edge_x : image.shape[1] - edge_x]

    return change


def tilt(degrees: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change that turns an image about its middle."""

    def change(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
        return cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT)

    return change


CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
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


@dataclass(frozen=True)
class Pool:
    """HAM10000 with facts and embeddings; what is searched in."""

    records: list[Record]
    facts: list[ImageFacts]
    vectors: np.ndarray
    keys: list[str]


def read_pool(data: Path, cache: Path | None) -> Pool:
    records = list(read_dataset(data / "ham10000").records)
    facts = read_facts(records, known=load_facts(cache / "facts.npz") if cache else {})
    known = load_embeddings(cache / "embeddings.npz", EMBEDDER) if cache else {}
    start = time.perf_counter()
    vectors, keys = embed(records, facts, embedder_graph(Console(stderr=True)), known=known)
    print(f"{len(records)} images; {len(facts) - len(known)} embedded in {time.perf_counter() - start:.0f} s.\n")
    if cache:
        save_facts(cache / "facts.npz", facts)
        save_embeddings(cache / "embeddings.npz", EMBEDDER, keys, vectors)
    return Pool(records, facts, vectors, keys)


def changed(records: list[Record], change: str, folder: Path) -> list[Record]:
    """Write changed copies; they have no metadata that could give them away."""
    alter, quality = CHANGES[change]
    copies = []
    for number, record in enumerate(records):
        path = folder / f"{number}.jpg"
        pixels = np.ascontiguousarray(alter(cv2.imread(str(record.path))))
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        copies.append(Record(path, record.image, record.diagnosis))
    return copies


def search(pool: Pool, copies: list[Record]) -> tuple[list[NearPair], list[NearPair]]:
    """Return the pairs of a copy and an image of the pool: by hash alone, and by hash or embedding."""
    facts = [facts_of(copy) for copy in copies]
    vectors, keys = embed(copies, facts, embedder_graph(Console(stderr=True)))
    n = len(copies)
    every_fact, every_record = [*facts, *pool.facts], [*copies, *pool.records]
    by_hash = [p for p in near_duplicates(every_fact) if p.first < n <= p.second]
    every_vector, every_key = np.concatenate([vectors, pool.vectors]), [*keys, *pool.keys]
    pairs = candidates(every_record, every_fact, every_vector, every_key, by_hash)
    return by_hash, by_hash + confirmed(every_record, [p for p in pairs if p[0] < n <= p[1]])


def row(pool: Pool, chosen: list[int], pairs: list[NearPair]) -> str:
    found = [(chosen[p.first], p.second - len(chosen)) for p in pairs]
    right = len({one for one, other in found if one == other})
    wrong = sum(pool.records[one].lesion_id != pool.records[other].lesion_id for one, other in found)
    precision = f"{right / (right + wrong):.3f}" if right + wrong else "-"
    return f"{right / len(chosen):.3f} | {wrong} | {precision}"


def changes(pool: Pool, copies: int, seed: int, wanted: list[str]) -> None:
    """Print recall and precision for each change."""
    large = [i for i, record in enumerate(pool.records) if record.source == "images_224"]
    chosen = sorted(np.random.default_rng(seed).choice(large, copies, replace=False).tolist())
    print(f"Changed copies of {copies} images, seed {seed}, JPEG quality 90 where nothing else is said:\n")
    print("| | by hash | | | by hash or embedding | | |\n|---|---|---|---|---|---|---|")
    print("| change | recall | other lesions | precision | recall | other lesions | precision |")
    with tempfile.TemporaryDirectory() as folder:
        for change in wanted:
            by_hash, both = search(pool, changed([pool.records[i] for i in chosen], change, Path(folder)))
            print(f"| {change} | {row(pool, chosen, by_hash)} | {row(pool, chosen, both)} |", flush=True)
    print()


def second_views(pool: Pool, blind: int, seed: int) -> None:
    """Tell how many real second views are taken for the same picture."""
    start = time.perf_counter()
    by_hash = near_duplicates(pool.facts)
    hashed = time.perf_counter() - start
    pairs = candidates(pool.records, pool.facts, pool.vectors, pool.keys, by_hash)
    laid = confirmed(pool.records, pairs)
    seconds = time.perf_counter() - start - hashed
    same = sum(pool.records[p.first].lesion_id == pool.records[p.second].lesion_id for p in by_hash)
    print(
        f"By hash: {len(by_hash)} pairs in {hashed:.0f} s, {len(by_hash) - same} of lesions that HAM10000 tells apart."
    )
    other = [p for p in laid if pool.records[p.first].lesion_id != pool.records[p.second].lesion_id]
    print(f"By embedding: {len(pairs)} candidates laid over each other in {seconds:.0f} s, {len(laid)} further pairs,")
    print(f"{len(other)} of lesions that HAM10000 tells apart{': ' if other else ''}", end="")
    print(", ".join(f"{pool.records[p.first].isic_id}/{pool.records[p.second].isic_id}" for p in other), end=".\n")
    views: dict[str | None, list[int]] = {}
    for index, record in enumerate(pool.records):
        views.setdefault(record.lesion_id, []).append(index)
    real = [(i, j) for group in views.values() for n, i in enumerate(group) for j in group[n + 1 :]]
    drawn = sorted(np.random.default_rng(seed).choice(len(real), blind, replace=False).tolist())
    taken = len(confirmed(pool.records, [real[i] for i in drawn]))
    print(f"Real second views: {len(real)} pairs, {same} ({same / len(real):.1%}) taken for one picture by hash;")
    print(f"blindly laid over each other {taken} of {blind} drawn ones ({taken / blind:.1%}) pass for one picture.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=200, help="images that are changed; 0 leaves this part out")
    parser.add_argument("--blind", type=int, default=600, help="second views looked at blindly; 0 leaves them out")
    parser.add_argument("--change", action="append", choices=CHANGES, help="only this change; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder that keeps facts and embeddings")
    options = parser.parse_args()
    data = os.environ.get("DERMLENS_DATA")
    if not data:
        print("Not run: it needs DERMLENS_DATA, the folder with ham10000/.")
        return
    pool = read_pool(Path(data), options.cache)
    if options.copies:
        changes(pool, options.copies, options.seed, options.change or list(CHANGES))
    if options.blind:
        second_views(pool, options.blind, options.seed)


if __name__ == "__main__":
    main()
