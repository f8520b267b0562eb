"""Findings: one row for each thing that is wrong with a data set, and the checks that need only hashes and ids.

`train` and `evaluate` run these checks too; each file is read once (`hash_records`).
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from dermlens.data.images import InputSpec, content_hash, decode, read_bytes
from dermlens.data.records import Dataset, Record, checked_hashes, picture_groups
from dermlens.errors import DermlensError

Severity = Literal["error", "warning", "note"]

KINDS = (
    "unreadable",
    "contradicting_labels",
    "near_duplicates_contradicting",
    "lesion_under_two_diagnoses",
    "label_against_reference",
    "same_image_across_split",
    "lesion_across_split",
    "patient_across_split",
    "near_duplicate_across_split",
    "shared_with_other_data",
    "label_suspect",
    "identical_images",
    "near_duplicates",
    "class_too_small",
    "class_hard_to_score",
    "class_imbalance",
    "source_shortcut",
    "artefact_by_class",
    "near_uniform",
    "blurred",
    "dark",
    "overexposed",
    "extreme_shape",
)
"""All kinds, in the order of a report."""

_COUNTED = {
    "near_duplicates_contradicting": ("picture", "in different files with different diagnoses"),
    "lesion_under_two_diagnoses": ("lesion", "with more than one diagnosis, in different pictures"),
    "label_against_reference": ("kind of wrong label", "according to the reference"),
    "near_duplicate_across_split": ("picture", "on both sides of the split in different files (inferred)"),
    "shared_with_other_data": ("picture or lesion", "shared with the other data set"),
    "label_suspect": ("label", "that a simple classifier doubts"),
    "near_duplicates": ("picture", "in different files with the same diagnosis"),
    "class_hard_to_score": ("class", "with too few test lesions for a useful score"),
    "class_imbalance": ("imbalance", "between the classes"),
    "source_shortcut": ("shortcut", "that reveals the class without the lesion"),
    "artefact_by_class": ("artefact", "much more common in some classes than in others"),
    "near_uniform": ("image", "with almost nothing on it"),
    "blurred": ("image", "out of focus"),
    "dark": ("image", "too dark"),
    "overexposed": ("image", "overexposed"),
    "extreme_shape": ("image", "of an extreme size or shape"),
}
"""For kinds whose summary is a plain count: what is counted, and what is wrong with it."""

_PLURALS = {
    "class": "classes",
    "kind of wrong label": "kinds of wrong labels",
    "picture or lesion": "pictures or lesions",
}
SMALL_CLASS_LESIONS = 20  # below this, a class's sensitivity has an interval wider than 40 points
_THREADS = 2
_CHUNK = 1024
_CHECK_SPEC = InputSpec(size_px=32)  # decoded only to see that it can be: as small as the format allows


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a data set, or worth knowing.

    Attributes:
        kind: one of `KINDS`.
        severity: "error" makes a result wrong, "warning" makes it less certain, "note" is for information.
        images: `Record.image` of the images concerned.
        evidence: what was found, one line.
        remedy: what to do, one line.
        labels: the diagnosis of each image, parallel to `images`.
        roles: the role of each image, parallel to `images`, where roles matter; else empty.
        suggested: the likelier diagnosis of each image, parallel to `images`, for suspected labels; else empty.
    """

    kind: str
    severity: Severity
    images: tuple[str, ...]
    evidence: str
    remedy: str
    labels: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    suggested: tuple[str, ...] = ()


def hash_records(
    records: Sequence[Record],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[str | None]:
    """Read and decode every image once; return n SHA-256 hex digests, None where it cannot be read or decoded.

    Args:
        records: n records.
        progress: called with the number of images just done, from this thread.
    """
    hashes: list[str | None] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(records), _CHUNK):
            for digest in pool.map(_hash_if_readable, records[start : start + _CHUNK]):
                hashes.append(digest)
                if progress is not None:
                    progress(1)
    return hashes


def basic_findings(
    records: Sequence[Record],
    hashes: Sequence[str | None],
    roles: Sequence[str | None] | None = None,
) -> list[Finding]:
    """Find unreadable images, contradicting labels, duplicates, groups that cross the split, and small classes.

    Args:
        records: n records.
        hashes: from `hash_records(records)`.
        roles: n roles to look for leaks in; by default the `split` that the data set itself sets. None is no role.

    Returns:
        Findings in the order of `KINDS`.
    """
    checked_hashes(records, hashes)
    sides = [record.split for record in records] if roles is None else list(roles)
    findings = [
        *_unreadable(records, hashes),
        *_identical(records, hashes),
        *_crossing(records, hashes, sides),
        *_small_classes(records),
    ]
    return sorted(findings, key=lambda finding: KINDS.index(finding.kind))


def summary(findings: Sequence[Finding]) -> list[str]:
    """Return one line for each kind that occurs, with counts, in the order of `KINDS`."""
    by_kind: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding)
    return [_summary_line(kind, by_kind[kind]) for kind in KINDS if kind in by_kind]


def repair_command(dataset: Dataset) -> str:
    """Return the command that repairs a data set, in one line."""
    words = ["dermlens", "audit", str(dataset.origin or dataset.root)]
    if dataset.reference is not None:
        words += ["--reference", str(dataset.reference)]
    if dataset.origin is not None and dataset.origin.is_file() and dataset.origin.parent != dataset.root:
        words += ["--images", str(dataset.root)]
    return shlex.join([*words, "--repair", "--manifest", "repaired.csv"])


def _hash_if_readable(record: Record) -> str | None:
    try:
        data = read_bytes(record.path)
        decode(data, spec=_CHECK_SPEC)
    except DermlensError:
        return None
    return content_hash(data)


def _unreadable(records: Sequence[Record], hashes: Sequence[str | None]) -> list[Finding]:
    return [
        Finding(
            "unreadable",
            "error",
            (record.image,),
            _why_unreadable(record),
            "Replace the file or remove it; training leaves it out.",
            (record.diagnosis,),
        )
        for record, digest in zip(records, hashes, strict=True)
        if digest is None
    ]


def _why_unreadable(record: Record) -> str:
    try:
        decode(record.path, spec=_CHECK_SPEC)
    except DermlensError as error:
        return error.message
    return "It could not be read before, but can be read now."


def _identical(records: Sequence[Record], hashes: Sequence[str | None]) -> list[Finding]:
    """Return one finding for each set of files that are the same byte for byte."""
    findings = []
    for group in _sharing(hashes):
        chosen = [records[i] for i in group]
        labels = sorted({record.diagnosis for record in chosen})
        images, own = tuple(r.image for r in chosen), tuple(r.diagnosis for r in chosen)
        if len(labels) > 1:
            evidence = f"The same file, byte for byte, is labelled {', '.join(labels)}."
            remedy = "Pass a reference that knows the diagnosis, or leave all copies out."
            findings.append(Finding("contradicting_labels", "error", images, evidence, remedy, own))
        else:
            evidence = f"{len(group)} files are identical, byte for byte."
            findings.append(Finding("identical_images", "note", images, evidence, "Keep one of them.", own))
    return findings


def _crossing(
    records: Sequence[Record],
    hashes: Sequence[str | None],
    roles: Sequence[str | None],
) -> list[Finding]:
    """Return pictures, lesions and patients on more than one side of the split.

    Each leak is reported once, by its closest tie: a lesion finding holds images whose counterpart on another side is
    another picture of the lesion, a patient finding those whose counterpart is another lesion of the patient.
    """
    pictures = picture_groups(records, hashes)
    lesions = [r.lesion_id or f"picture {p}" for r, p in zip(records, pictures, strict=True)]
    ties: tuple[tuple[str, str, Sequence[Hashable], Sequence[Hashable] | None], ...] = (
        ("same_image_across_split", "picture", pictures, None),
        ("lesion_across_split", "lesion", [r.lesion_id for r in records], pictures),
        ("patient_across_split", "patient", [r.patient_id for r in records], lesions),
    )
    findings = []
    for kind, what, keys, closer in ties:
        for group in _sharing(keys):
            leaking = [i for i in group if _has_counterpart(i, group, roles, closer)]
            if leaking:
                findings.append(_crossing_finding(kind, what, records, leaking, roles))
    return findings


def _has_counterpart(
    index: int,
    group: Sequence[int],
    roles: Sequence[str | None],
    closer: Sequence[Hashable] | None,
) -> bool:
    """Whether another member is on another side and not tied more closely."""
    if roles[index] is None:
        return False
    return any(
        roles[other] not in (None, roles[index]) and (closer is None or closer[other] != closer[index])
        for other in group
    )


def _crossing_finding(
    kind: str, what: str, records: Sequence[Record], leaking: Sequence[int], roles: Sequence[str | None]
) -> Finding:
    sides = tuple(str(roles[i]) for i in leaking)
    first = records[leaking[0]]
    name = {"picture": first.isic_id, "lesion": first.lesion_id, "patient": first.patient_id}[what] or first.image
    counts = ", ".join(f"{n} in {role}" for role, n in sorted(Counter(sides).items()))
    return Finding(
        kind,
        "error",
        tuple(records[i].image for i in leaking),
        f"The {what} {name} is on both sides of the split: {counts} images.",
        "Move all of its images to one side. A data set without a split is split by lesion and patient.",
        tuple(records[i].diagnosis for i in leaking),
        sides,
    )


def _small_classes(records: Sequence[Record]) -> list[Finding]:
    by_class: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_class[record.diagnosis].append(record)
    findings = []
    for code, chosen in sorted(by_class.items()):
        lesions = len({r.lesion_id or r.isic_id or r.image for r in chosen})
        if lesions < SMALL_CLASS_LESIONS:
            evidence = (
                f"{code} has {len(chosen)} images of {lesions} lesions; its score will be hardly better than a guess."
            )
            remedy = "Add images of other lesions, or merge the class with a related one."
            images = tuple(r.image for r in chosen)
            findings.append(Finding("class_too_small", "warning", images, evidence, remedy, (code,) * len(chosen)))
    return findings


def _sharing(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the index groups of two or more that share a key; None is no key."""
    indices: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if key is not None:
            indices[key].append(index)
    return [group for group in indices.values() if len(group) > 1]


def _summary_line(kind: str, findings: Sequence[Finding]) -> str:
    count = len(findings)
    images = sum(len(finding.images) for finding in findings)
    if kind == "unreadable":
        return f"{_many(count, 'image')} cannot be read, first {findings[0].images[0]}"
    if kind == "contradicting_labels":
        pairs = Counter("/".join(sorted(set(finding.labels))) for finding in findings)
        number = "two" if all(pair.count("/") == 1 for pair in pairs) else "more than one"
        labels = ", ".join(f"{n} {pair}" for pair, n in sorted(pairs.items()))
        diagnoses = "diagnosis" if number == "more than one" else "diagnoses"
        return f"{_many(count, 'image')} with {number} {diagnoses}, byte for byte the same ({labels})"
    if kind == "identical_images":
        return f"{_many(count, 'image')} stored in {images} files with the same diagnosis"
    if kind == "class_too_small":
        sizes = ", ".join(f"{f.labels[0]} {len(f.images)}" for f in findings)
        return f"{_many(count, 'class', 'classes')} with fewer than {SMALL_CLASS_LESIONS} lesions (images: {sizes})"
    if kind in _COUNTED:
        noun, wrong = _COUNTED[kind]
        concerned = f" ({_many(images, 'image')})" if images else ""
        return f"{_many(count, noun, _PLURALS.get(noun))} {wrong}{concerned}"
    what, others = {
        "same_image_across_split": ("picture", ""),
        "lesion_across_split": ("lesion", ", in different pictures"),
        "patient_across_split": ("patient", ", with different lesions"),
    }[kind]
    sides = Counter(role for finding in findings for role in finding.roles)
    by_side = ", ".join(f"{n} in {role}" for role, n in sorted(sides.items()))
    return f"{_many(count, what)} on both sides of the split{others} (images: {by_side})"


def _many(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n cases (Wilson 1927); good for few cases and for 0 and 1."""
    z2 = 1.959964**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * (share * (1 - share) / n + z2 / (4 * n * n))) ** 0.5 / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)
