"""One labelled image (`Record`), a data set of them (`Dataset`), and which records belong together.

Together belong records of the same picture, lesion or patient: connected components over what they share.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dermlens.errors import DataError

ROLE_NAMES = ("train", "select", "calibrate", "test")
_SPLITS = {
    "train": ("train", "training"),
    "select": ("val", "valid", "validation", "dev", "select"),
    "calibrate": ("calibrate", "calibration"),
    "test": ("test", "testing"),
}
SPLIT_NAMES = {name: split for split, names in _SPLITS.items() for name in names}
"""Names of split folders and values of a `split` column, in lower case, with the role that they mean."""

_ISIC_ID = re.compile(r"(ISIC_\d{7})(?:_downsampled)?")

DERMOSCOPIC, CLOSE_UP = "dermoscopic", "close-up"
_DOMAINS = {
    DERMOSCOPIC: ("dermoscopy", "dermatoscopic", "dermatoscopy"),
    CLOSE_UP: ("close up", "closeup", "clinical", "clinical: close-up", "macroscopic"),
}
_DOMAIN_BY_NAME = {name: domain for domain, others in _DOMAINS.items() for name in (domain, *others)}


@dataclass(frozen=True)
class Record:
    """One image with its diagnosis and what is known about it.

    Attributes:
        path: the image file.
        image: POSIX path below the data root, unique in its data set.
        diagnosis: a code of `diagnoses.py`, or the name as given where it has none.
        lesion_id, patient_id: equal text means the same lesion or patient; None is unknown.
        split: "train", "select", "calibrate", "test", or None when the data set leaves it open.
        age_approx: years.
        source: which collection or folder the file comes from.
        frame_aspect: width / height of the camera frame for a file squashed to another shape, else None.
        isic_id: the ISIC archive's name of the picture, "ISIC_" and seven digits.
        dx_type: how the diagnosis was made, in the data set's words, such as "histo".
        fitzpatrick: recorded skin type, 1 (very light) to 6, in the data set's words.
        skin_tone: recorded skin tone as MILK10k counts it, 0 (very dark) to 5 (very light); not a Fitzpatrick type.
        licence: of the picture, in the data set's words.
        domain: how the picture was taken, "dermoscopic", "close-up" or the data set's own word; None where it is not
            said.
    """

    path: Path
    image: str
    diagnosis: str
    lesion_id: str | None = None
    patient_id: str | None = None
    split: str | None = None
    age_approx: float | None = None
    sex: str | None = None
    anatom_site: str | None = None
    source: str | None = None
    frame_aspect: float | None = None
    isic_id: str | None = None
    dx_type: str | None = None
    fitzpatrick: str | None = None
    skin_tone: str | None = None
    licence: str | None = None
    domain: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Records with where they come from; `notes` count what was left out or changed, and why.

    `origin` is the folder or table that was read and `reference` the table that it was read with, where known.
    """

    root: Path
    layout: str
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()
    origin: Path | None = None
    reference: Path | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The diagnoses that occur, sorted."""
        return tuple(sorted({record.diagnosis for record in self.records}))


def isic_id_of(name: str) -> str | None:
    """Return the ISIC id that a file's stem is ("ISIC_0024306", also with "_downsampled"), else None."""
    match = _ISIC_ID.fullmatch(name)
    return match.group(1) if match else None


def domain_of(name: str | None) -> str | None:
    """Return the domain that a table's word means: the usual names of two are known, other words stay as they are.

    >>> domain_of("clinical: close-up"), domain_of("Dermoscopy"), domain_of("slit lamp")
    ('close-up', 'dermoscopic', 'slit lamp')
    """
    return None if name is None else _DOMAIN_BY_NAME.get(name.casefold(), name)


def data_fingerprint(records: Sequence[Record], hashes: Sequence[str | None]) -> str:
    """Return 64 hex digits that change with any picture, label, group, split, aspect or domain, not with order or name.

    Args:
        records: n records.
        hashes: n SHA-256 hex digests of the files, None where unreadable (the image's name is then used).
    """
    rows = sorted(
        json.dumps(
            [digest or r.image, r.diagnosis, r.lesion_id, r.patient_id, r.split, r.frame_aspect]
            + ([r.domain] if r.domain else [])
        )
        for r, digest in zip(records, checked_hashes(records, hashes), strict=True)
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def checked_hashes(records: Sequence[Record], hashes: Sequence[str | None]) -> Sequence[str | None]:
    """Return `hashes`; `DataError` unless there is one for each record."""
    if len(hashes) != len(records):
        raise DataError(
            f"{len(hashes)} hashes for {len(records)} records. One for each is needed, None where unreadable.",
            remedy="Pass what hash_records(records) returned for these very records.",
            code="hashes",
        )
    return hashes


def picture_groups(records: Sequence[Record], hashes: Sequence[str | None]) -> list[int]:
    """Number the pictures: n integers, equal where content hash or ISIC id is shared (also through a third file)."""
    checked_hashes(records, hashes)
    return group_connected([(h, r.isic_id) for r, h in zip(records, hashes, strict=True)])


def lesion_groups(records: Sequence[Record], hashes: Sequence[str | None]) -> list[int]:
    """Number the groups that a split must not cut: n integers, equal where records are connected.

    Two records are connected when they share lesion id, patient id, content hash or ISIC id, directly or through
    others. Numbers count up in the order of first appearance.
    """
    checked_hashes(records, hashes)
    return group_connected([(h, r.isic_id, r.lesion_id, r.patient_id) for r, h in zip(records, hashes, strict=True)])


def lesions(records: Sequence[Record], hashes: Sequence[str | None]) -> list[int]:
    """Number the lesions: n integers, equal where lesion id, ISIC id or content hash is shared, also through others.

    This is the unit that figures and their intervals count: a record of which nothing is known is its own lesion.
    """
    checked_hashes(records, hashes)
    return group_connected([(h, r.isic_id, r.lesion_id) for r, h in zip(records, hashes, strict=True)])


def members(groups: Sequence[int]) -> list[list[int]]:
    """Return for each group number, in ascending order, the indices of its records."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        found[group].append(index)
    return [found[group] for group in sorted(found)]


def group_connected(keys: Sequence[Sequence[Hashable]], pairs: Iterable[tuple[int, int]] = ()) -> list[int]:
    """Number n things by first appearance: equal numbers where two are connected, directly or through others.

    Args:
        keys: for each thing its keys, the same kinds in the same order; things that share one are connected. None is no
            key.
        pairs: indices of things that are connected as well.
    """
    parents = list(range(len(keys)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first_with: dict[tuple[int, Hashable], int] = {}
    for index, own in enumerate(keys):
        for kind, key in enumerate(own):
            if key is not None:
                parents[root(index)] = root(first_with.setdefault((kind, key), index))
    for one, other in pairs:
        parents[root(one)] = root(other)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(index), len(numbers)) for index in range(len(keys))]
