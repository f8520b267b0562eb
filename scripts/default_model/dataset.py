"""HAM10000 and ISIC-9 become one data set: labels from the official reference, one copy of each picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dermlens.audit.findings import hash_records
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Dataset, Record, members, picture_groups
from dermlens.diagnoses import ISIC2019
from dermlens.evaluation.metrics import balanced_accuracy_score
from dermlens.reporting.progress import track

FRAME_ASPECT = 4 / 3  # an ISIC-9 file is the full 4:3 frame, squashed to a square
PREFERENCE = ("images_224", "isic9", "images_200x150")  # which copy of a picture is used: the sharpest first
RESERVED = Path(__file__).parent / "reserved.json"  # the example images and their lesions


def default_dataset(data: Path, console: Console) -> Dataset:
    """Return the repaired records of both sources; the example images and their lesions are in the test role.

    Args:
        data: the folder with `ham10000/`, `isic9/` and `isic_reference.csv`.
    """
    reference = data / "isic_reference.csv"
    ham = read_dataset(data / "ham10000", reference=reference, task="isic2019")
    isic9 = read_dataset(data / "isic9", reference=reference, task="isic2019", frame_aspect=FRAME_ASPECT)
    isic9 = replace(isic9, records=tuple(replace(r, split=None, source="isic9") for r in isic9.records))
    joined = combine(ham, isic9)
    with track("Looking for duplicates", len(joined.records), console) as advance:
        hashes = hash_records(joined.records, progress=advance)
    records, notes = drop_contradictions_and_duplicates(joined.records, hashes, prefer=PREFERENCE)
    reserved = json.loads(RESERVED.read_text(encoding="utf-8"))
    isic_ids, lesion_ids = set(reserved["isic_ids"]), set(reserved["lesion_ids"])
    records = [replace(r, split="test") if r.isic_id in isic_ids or r.lesion_id in lesion_ids else r for r in records]
    return replace(joined, records=tuple(records), notes=(*joined.notes, *notes))


def combine(*datasets: Dataset) -> Dataset:
    """Join data sets; each image name gets the name of its root folder as a prefix ("isic9/Train/nevus/a.jpg").

    Lesion ids stay as they are, so a lesion that is in both data sets is one lesion. A record without a source gets
    the prefix as its source.
    """
    records = tuple(
        replace(record, image=f"{dataset.root.name}/{record.image}", source=record.source or dataset.root.name)
        for dataset in datasets
        for record in dataset.records
    )
    notes = tuple(f"{dataset.root.name}: {note}" for dataset in datasets for note in dataset.notes)
    layout = " + ".join(dict.fromkeys(dataset.layout for dataset in datasets))
    return Dataset(datasets[0].root, layout, records, notes)


def drop_contradictions_and_duplicates(
    records: Sequence[Record], hashes: Sequence[str | None], *, prefer: Sequence[str] = ()
) -> tuple[list[Record], list[str]]:
    """Return one record of each picture, in their order, and notes that count what is left out.

    Two records show the same picture when their files are equal byte for byte, or when they have the same ISIC id. A
    picture with two diagnoses is left out.

    Args:
        records: n records with repaired labels.
        hashes: n SHA-256 hex digests; None for an unreadable file, which is left out.
        prefer: values of `Record.source`, the best first; other sources follow, in the order of the records.
    """
    rank = {source: place for place, source in enumerate(prefer)}
    chosen: list[int] = []
    contradicted: Counter[str] = Counter()
    contradicting_files = copies = 0
    for group in members(picture_groups(records, hashes)):
        labels = sorted({records[i].diagnosis for i in group})
        readable = [i for i in group if hashes[i] is not None]
        if len(labels) > 1:
            contradicted["/".join(labels)] += 1
            contradicting_files += len(group)
        elif readable:
            chosen.append(min(readable, key=lambda i: (rank.get(records[i].source or "", len(rank)), i)))
            copies += len(readable) - 1
    notes = []
    if contradicted:
        pairs = ", ".join(f"{n} {labels}" for labels, n in sorted(contradicted.items()))
        notes.append(
            f"{contradicted.total()} pictures ({contradicting_files} files) have more than one diagnosis and are left "
            f"out: {pairs}."
        )
    if copies:
        notes.append(f"{copies} more copies of the same pictures are left out.")
    if None in hashes:
        notes.append(f"{sum(h is None for h in hashes)} unreadable files are left out.")
    return [records[i] for i in sorted(chosen)], notes


def source_alone(records: Sequence[Record]) -> dict[str, Any]:
    """Say how well the source of an image alone tells its class: the best guess for each source, scored."""
    sources = np.array([str(r.source) for r in records])
    codes = np.array([r.diagnosis for r in records])
    rows = {}
    for code in ISIC2019:
        of_class = sources[codes == code]
        rows[code] = {s: float(np.mean(of_class == s)) for s in sorted(set(sources))}
    guess = {s: max(rows, key=lambda code: rows[code][s]) for s in sorted(set(sources))}
    truth, guessed = ([ISIC2019.index(code) for code in each] for each in (codes, [guess[s] for s in sources]))
    value = balanced_accuracy_score(truth, guessed)
    return {
        "balanced_accuracy": value,
        "chance": 1 / len(ISIC2019),
        "share_of_class_by_source": rows,
        "sentence": (
            f"The source of an image alone ({', '.join(sorted(set(sources)))}), with the best guess for each, reaches "
            f"a balanced accuracy of {value:.3f}, against {1 / len(ISIC2019):.3f} by chance: this much could be "
            "learned from framing and compression instead of skin. All sources are brought to one framing, and "
            "compression is varied in training, to make it less."
        ),
    }
