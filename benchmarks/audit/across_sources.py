"""Look-alikes across the collections of the embedded model: recall where it is known which pictures are one.

Three truths: the lesions that MILK10k shares with HAM10000, found when MILK10k was audited against it; the pictures
that ISIC-9 has as smaller, squashed copies of HAM10000 and MSK, with their ISIC ids hidden; and changed copies of
pictures of each collection. What the search found among all pictures is `scripts/default_model/lookalikes.csv`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import CONSOLE
from benchmarks.audit.near_duplicates import CHANGES, Change, changed
from benchmarks.report import markdown
from dermlens.audit.embed import Embedder
from dermlens.audit.facts import ImageFacts, facts_of
from dermlens.data.records import Record, group_connected
from dermlens.data.tables import read_table
from dermlens.networks.embedder import VERSION, embedder_graph
from scripts.default_model.joined import name_of, read_pairs, read_pictures, search
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


def run(*, data: Path, copies: int = 40, hidden: int = 400, pool: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Return recall by truth.

    Args:
        copies: changed copies of each archive and domain.
        hidden: pictures of ISIC-9 whose ISIC id is hidden.
        pool: most pictures of a domain that are searched in.
    """
    records, facts, _ = read_pictures(data, CONSOLE)
    drawn = np.random.default_rng(seed)
    chosen = _by_archive(records, copies, drawn)
    of_isic9 = _hidden(records, read_sources(data, ["isic9"]).records)
    shown = sorted(drawn.choice(sorted(of_isic9), min(hidden, len(of_isic9)), replace=False).tolist())
    searched = _part(records, facts, {*shown, *(i for rows in chosen.values() for i in rows)}, pool, drawn)
    rows = [i for part in chosen.values() for i in part]
    found: dict[str, Any] = {
        "images": len(records),
        "searched": len(searched[0]),
        "seed": seed,
        "known": _known(records, data),
        "changes": {},
    }
    for change, (alter, quality) in COPIES.items():
        with tempfile.TemporaryDirectory() as folder:
            right = _right(*searched, changed([records[i] for i in rows], alter, quality, Path(folder)), rows, records)
        for name, part in chosen.items():
            score = {"copies": len(part), "found": len(right & set(part))}
            found["changes"].setdefault(name, {})[change] = score
    right = _right(*searched, [of_isic9[i] for i in shown], shown, records)
    found["isic9"] = {"copies": len(shown), "found": len(right)}
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


def _by_archive(records: list[Record], copies: int, drawn: np.random.Generator) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        places.setdefault(f"{origin_of(record)}, {record.domain}", []).append(index)
    return {
        name: sorted(drawn.choice(rows, min(copies, len(rows)), replace=False).tolist())
        for name, rows in sorted(places.items())
    }


def _hidden(records: list[Record], isic9: Sequence[Record]) -> dict[int, Record]:
    """Return picture -> its copy in ISIC-9, where another collection's copy is the sharper one."""
    place = {r.isic_id: i for i, r in enumerate(records) if r.isic_id and not r.image.startswith("isic9/")}
    return {place[r.isic_id]: r for r in isic9 if r.isic_id in place}


def _part(
    records: list[Record], facts: list[ImageFacts], needed: set[int], most: int, drawn: np.random.Generator
) -> tuple[list[Record], list[ImageFacts]]:
    """Return the needed pictures among at most so many of each domain."""
    chosen: list[int] = []
    for domain in sorted({str(r.domain) for r in records}):
        rows = [i for i, r in enumerate(records) if str(r.domain) == domain]
        others = sorted(set(rows) - needed)
        more = max(0, min(len(others), most - (len(rows) - len(others))))
        chosen += sorted({*needed.intersection(rows), *drawn.choice(others, more, replace=False).tolist()})
    return [records[i] for i in chosen], [facts[i] for i in chosen]


def _right(
    pool: list[Record], facts: list[ImageFacts], copies: list[Record], rows: list[int], records: list[Record]
) -> set[int]:
    """Return which pictures (as places in `records`) are paired with their copies, which look like another archive."""
    names = {name_of(records[row]): row for row in rows}
    hidden = [
        replace(copy, image=f"pad/copy {row}.jpg", isic_id=f"copy {row}", lesion_id=None, domain=records[row].domain)
        for copy, row in zip(copies, rows, strict=True)
    ]
    embedder = Embedder(embedder_graph(CONSOLE), VERSION)
    pairs = search([*hidden, *pool], [*map(facts_of, hidden), *facts], embedder, CONSOLE, first=len(hidden))
    ends = (sorted(pair, key=lambda name: name.startswith("copy ")) for pair in pairs)
    return {names[name] for name, copy in ends if name in names and copy == f"copy {names[name]}"}


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
        f"Share found of {copies} copies of each, among {found['searched']:,} pictures. Lesions that MILK10k shares "
        f"with HAM10000, as an earlier audit found them: {known['lesions_found']} of {known['lesions']} found again. "
        f"Pictures that ISIC-9 has as squashed copies of 180 pixels, ids hidden: {isic9['found']} of "
        f"{isic9['copies']}."
    )
