"""Look-alikes across the collections of the embedded model: recall where it is known which pictures are one.

Three truths: the lesions that MILK10k shares with HAM10000, found when MILK10k was audited against it; the pictures
that ISIC-9 has as smaller, squashed copies of HAM10000 and MSK, with their ISIC ids hidden; and changed copies of
pictures of each collection. What the search found among all pictures is `scripts/default_model/lookalikes.csv`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import CONSOLE
from benchmarks.audit.near_duplicates import CHANGES, Change, Pool, changed, search
from benchmarks.report import markdown
from dermlens.audit.embed import Embedder, embed
from dermlens.data.records import CLOSE_UP, Record, group_connected
from dermlens.data.tables import read_table
from dermlens.networks.embedder import VERSION, embedder_graph
from scripts.default_model.joined import name_of, read_pairs, read_pictures
from scripts.default_model.sources import origin_of, read_sources

SMALL_PX = 84  # as BCN_20000 is at hand


def shrink(image: np.ndarray) -> np.ndarray:
    """Return the image with its shorter side at 84 pixels."""
    scale = SMALL_PX / min(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


COPIES: dict[str, tuple[Change, int]] = {
    "recompressed, quality 30": CHANGES["recompressed, quality 30"],
    "half the size": CHANGES["half the size"],
    "shrunk to 84 pixels": (shrink, 90),
    "cropped to 90 %": CHANGES["cropped to 90 %"],
    "cropped to 80 %": CHANGES["cropped to 80 %"],
}


def run(*, data: Path, copies: int = 60, pool: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Return recall by truth.

    Args:
        copies: changed copies of each collection and domain.
        pool: most pictures of a domain that are searched in.
    """
    records, facts, _ = read_pictures(data, CONSOLE)
    embedder = Embedder(embedder_graph(CONSOLE), VERSION)
    vectors, keys = embed(records, facts, embedder, cache=True)
    whole = Pool(records, facts, vectors, keys)
    drawn = np.random.default_rng(seed)
    by_collection = _by_collection(records, copies, drawn)
    hidden = _hidden(records, read_sources(data, ["isic9"]).records)
    found: dict[str, Any] = {"images": len(records), "seed": seed, "known": _known(records, data), "changes": {}}
    for domain in sorted({str(r.domain) for r in records}):
        own = {name: rows for name, rows in by_collection.items() if name.endswith(domain)}
        needed = sorted({i for rows in own.values() for i in rows})
        searched = _part(whole, domain, needed + ([] if domain == CLOSE_UP else list(hidden)), pool, drawn)
        for change, (alter, quality) in COPIES.items():
            for name, score in _planted(searched, own, records, alter, quality).items():
                found["changes"].setdefault(name, {})[change] = score
        if domain != CLOSE_UP:
            found["isic9"] = _score(
                searched, [replace(r, isic_id=None) for r in hidden.values()], list(hidden), records
            )
    return found


def _known(records: list[Record], data: Path) -> dict[str, int]:
    """Count the lesions and pairs of `same_lesion.csv` that the pairs found by the search join."""
    names = [name_of(r) for r in records]
    place = {name: i for i, name in enumerate(names)}
    pairs = [(place[one], place[other]) for one, other in read_pairs() if one in place and other in place]
    lesion = group_connected([(r.lesion_id,) for r in records], pairs)
    rows = read_table(data / "milk10k" / "same_lesion.csv").rows
    joined = [lesion[place[row["milk10k"]]] == lesion[place[row["ham10000"]]] for row in rows]
    milk = [records[place[row["milk10k"]]].lesion_id for row in rows]
    return {
        "lesions": len(set(milk)),
        "lesions_found": len({name for name, there in zip(milk, joined, strict=True) if there}),
        "pairs": len(rows),
        "pairs_found": sum(joined),
    }


def _by_collection(records: list[Record], copies: int, drawn: np.random.Generator) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        places.setdefault(f"{origin_of(record)}, {record.domain}", []).append(index)
    return {
        name: sorted(drawn.choice(rows, min(copies, len(rows)), replace=False).tolist())
        for name, rows in places.items()
    }


def _hidden(records: list[Record], isic9: tuple[Record, ...]) -> dict[int, Record]:
    """Return picture -> its copy in ISIC-9, where another collection's copy is the sharper one."""
    place = {r.isic_id: i for i, r in enumerate(records) if r.isic_id and not r.image.startswith("isic9/")}
    return {place[r.isic_id]: replace(r, lesion_id=None) for r in isic9 if r.isic_id in place}


def _part(whole: Pool, domain: str, needed: list[int], most: int, drawn: np.random.Generator) -> Pool:
    rows = [i for i, r in enumerate(whole.records) if str(r.domain) == domain]
    others = sorted(set(rows) - set(needed))
    more = max(0, min(len(others), most - len(needed)))
    chosen = sorted({*needed, *drawn.choice(others, more, replace=False).tolist()})
    return Pool(
        [whole.records[i] for i in chosen],
        [whole.facts[i] for i in chosen],
        whole.vectors[chosen],
        [whole.keys[i] for i in chosen],
    )


def _planted(
    pool: Pool, own: Mapping[str, list[int]], records: list[Record], alter: Change, quality: int
) -> dict[str, dict[str, float]]:
    rows = [i for part in own.values() for i in part]
    with tempfile.TemporaryDirectory() as folder:
        copies = changed([records[i] for i in rows], alter, quality, Path(folder))
        right = _right(pool, copies, rows, records)
    starts = np.cumsum([0, *(len(part) for part in own.values())])
    return {
        name: {"copies": len(part), "found": len(right & set(range(start, start + len(part))))}
        for (name, part), start in zip(own.items(), starts.tolist(), strict=False)
    }


def _score(pool: Pool, copies: list[Record], rows: list[int], records: list[Record]) -> dict[str, float]:
    return {"copies": len(copies), "found": len(_right(pool, copies, rows, records))}


def _right(pool: Pool, copies: list[Record], rows: list[int], records: list[Record]) -> set[int]:
    """Return which copies are paired with the picture that they are copies of."""
    _, pairs = search(pool, copies)
    images = [records[i].image for i in rows]
    return {p.first for p in pairs if pool.records[p.second - len(copies)].image == images[p.first]}


def table(found: Mapping[str, Any]) -> str:
    """Return recall of copies by collection, and of the pictures that are known to be one."""
    known, isic9 = found["known"], found["isic9"]
    changes = list(next(iter(found["changes"].values())))
    rows = [
        [name, *(f"{row[change]['found'] / row[change]['copies']:.2f}" for change in changes)]
        for name, row in sorted(found["changes"].items())
    ]
    copies = max(row["copies"] for scores in found["changes"].values() for row in scores.values())
    return (
        f"{markdown(['changed copies of', *changes], rows)}\n\n"
        f"Share found of {copies} copies of each. Lesions that MILK10k shares with HAM10000: {known['lesions_found']} "
        f"of {known['lesions']} found again. Pictures that ISIC-9 has as squashed copies of 180 pixels, ids hidden: "
        f"{isic9['found']:,} of {isic9['copies']:,}."
    )
