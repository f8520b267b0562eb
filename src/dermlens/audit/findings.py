"""Findings: one row for each thing that is wrong with a data set, and the checks that need only hashes and ids.

`train` and `evaluate` run these checks too; each file is read once (`hash_records`).
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dermlens.data.images import InputSpec, content_hash, decode, read_bytes
from dermlens.data.records import Dataset, Record, checked_hashes, picture_groups
from dermlens.errors import DermlensError
from dermlens.reporting.progress import Advance

Severity = Literal["error", "warning", "note"]
Roles = Sequence[str | None] | None

SMALL_CLASS_LESIONS = 20  # below this, a class's sensitivity has an interval wider than 40 points

_KINDS: dict[str, tuple[Severity, str, str]] = {
    "unreadable": ("error", "image", "that cannot be read"),
    "contradicting_labels": ("error", "image", "with different diagnoses, byte for byte the same"),
    "near_duplicates_contradicting": ("error", "picture", "in different files with different diagnoses"),
    "lesion_under_two_diagnoses": ("error", "lesion", "with more than one diagnosis, in different pictures"),
    "label_against_reference": ("error", "kind of wrong label", "according to the reference"),
    "same_image_across_split": ("error", "picture", "on both sides of the split"),
    "lesion_across_split": ("error", "lesion", "on both sides of the split, in different pictures"),
    "patient_across_split": ("error", "patient", "on both sides of the split, with different lesions"),
    "near_duplicate_across_split": ("error", "picture", "on both sides of the split in different files (inferred)"),
    "shared_with_other_data": ("warning", "picture or lesion", "shared with the other data set"),
    "label_suspect": ("warning", "label", "that a simple classifier doubts"),
    "identical_images": ("note", "image", "in several identical files with the same diagnosis"),
    "near_duplicates": ("note", "picture", "in different files with the same diagnosis"),
    "class_too_small": ("warning", "class", f"with fewer than {SMALL_CLASS_LESIONS} lesions"),
    "class_hard_to_score": ("warning", "class", "with too few test lesions for a useful score"),
    "class_imbalance": ("note", "imbalance", "between the classes"),
    "source_shortcut": ("warning", "shortcut", "to the class without the lesion"),
    "artefact_by_class": ("warning", "artefact", "much more common in some classes than in others"),
    "near_uniform": ("warning", "image", "with almost nothing on it"),
    "blurred": ("warning", "image", "out of focus"),
    "dark": ("warning", "image", "too dark"),
    "overexposed": ("warning", "image", "overexposed"),
    "extreme_shape": ("warning", "image", "of an extreme size or shape"),
}
"""For each kind its severity, what is counted, and what is wrong with it."""

KINDS = tuple(_KINDS)
"""All kinds, in the order of a report."""


def severity_of(kind: str) -> Severity:
    """Return "error", "warning" or "note"."""
    return _KINDS[kind][0]


_PLURALS = {
    "class": "classes",
    "kind of wrong label": "kinds of wrong labels",
    "picture or lesion": "pictures or lesions",
}
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
        roles: the role of each image, parallel to `images`; empty where there are none.
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

    @classmethod
    def of(
        cls, kind: str, records: Sequence[Record], evidence: str, remedy: str, roles: Roles = None, suggested: str = ""
    ) -> Finding:
        """Make a finding about some records; `roles` are the splits of the data set by default."""
        sides = [record.split for record in records] if roles is None else roles
        images, labels = tuple(r.image for r in records), tuple(r.diagnosis for r in records)
        parallel = tuple(side or "" for side in sides) if any(sides) else ()
        hints = (suggested,) * len(images) if suggested else ()
        return cls(kind, _KINDS[kind][0], images, evidence, remedy, labels, parallel, hints)


def hash_records(records: Sequence[Record], *, progress: Advance | None = None) -> list[str | None]:
    """Read and decode every image once; return n SHA-256 hex digests, None where it cannot be read or decoded."""
    hashes: list[str | None] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(records), _CHUNK):
            for digest in pool.map(_hash_if_readable, records[start : start + _CHUNK]):
                hashes.append(digest)
                if progress is not None:
                    progress(1)
    return hashes


def basic_findings(records: Sequence[Record], hashes: Sequence[str | None], roles: Roles = None) -> list[Finding]:
    """Find unreadable images, contradicting labels, copies, leaks and small classes, in the order of `KINDS`.

    Args:
        records, hashes: n records and what `hash_records` returns of them.
        roles: n roles to look for leaks in, None for no role; by default the `split` of the data set.
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
    remedy = "Replace the file or remove it; training leaves it out."
    return [
        Finding.of("unreadable", [record], _why_unreadable(record), remedy)
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
        if len(labels) > 1:
            evidence = f"The same file, byte for byte, is labelled {', '.join(labels)}."
            remedy = "Pass a reference that knows the diagnosis, or leave all copies out."
            findings.append(Finding.of("contradicting_labels", chosen, evidence, remedy))
        else:
            evidence = f"{len(group)} files are identical, byte for byte."
            findings.append(Finding.of("identical_images", chosen, evidence, "Keep one of them."))
    return findings


def _crossing(records: Sequence[Record], hashes: Sequence[str | None], roles: Sequence[str | None]) -> list[Finding]:
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
    remedy = "Move all of its images to one side. A data set without a split is split by lesion and patient."
    findings = []
    for kind, what, keys, closer in ties:
        for group in _sharing(keys):
            leaking = [i for i in group if _has_counterpart(i, group, roles, closer)]
            if leaking:
                chosen, sides = [records[i] for i in leaking], [roles[i] for i in leaking]
                first = chosen[0]
                names = {"picture": first.isic_id, "lesion": first.lesion_id, "patient": first.patient_id}
                counts = ", ".join(f"{n} in {role}" for role, n in sorted(Counter(map(str, sides)).items()))
                evidence = f"The {what} {names[what] or first.image} is on both sides of the split: {counts} images."
                findings.append(Finding.of(kind, chosen, evidence, remedy, roles=sides))
    return findings


def _has_counterpart(
    index: int, group: Sequence[int], roles: Sequence[str | None], closer: Sequence[Hashable] | None
) -> bool:
    """Whether another member is on another side and not tied more closely."""
    return roles[index] is not None and any(
        roles[other] not in (None, roles[index]) and (closer is None or closer[other] != closer[index])
        for other in group
    )


def _small_classes(records: Sequence[Record]) -> list[Finding]:
    remedy = "Add images of other lesions, or merge the class with a related one."
    findings = []
    for code in sorted({record.diagnosis for record in records}):
        chosen = [record for record in records if record.diagnosis == code]
        lesions = len({r.lesion_id or r.isic_id or r.image for r in chosen})
        if lesions < SMALL_CLASS_LESIONS:
            evidence = f"{code} has {len(chosen)} images of {lesions} lesions, too few for a score that means anything."
            findings.append(Finding.of("class_too_small", chosen, evidence, remedy))
    return findings


def _sharing(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the index groups of two or more that share a key; None is no key."""
    indices: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if key is not None:
            indices[key].append(index)
    return [group for group in indices.values() if len(group) > 1]


def _summary_line(kind: str, findings: Sequence[Finding]) -> str:
    _, noun, wrong = _KINDS[kind]
    images = sum(len(finding.images) for finding in findings)
    detail = _many(images, "image") if images not in (0, len(findings)) else ""
    if kind == "unreadable":
        detail = f"first {findings[0].images[0]}"
    elif kind == "contradicting_labels":
        pairs = Counter("/".join(sorted(set(finding.labels))) for finding in findings)
        detail = ", ".join(f"{n} {pair}" for pair, n in sorted(pairs.items()))
    elif kind == "identical_images":
        detail = f"{images} files"
    elif kind == "class_too_small":
        detail = f"images: {', '.join(f'{finding.labels[0]} {len(finding.images)}' for finding in findings)}"
    elif kind in ("same_image_across_split", "lesion_across_split", "patient_across_split"):
        sides = Counter(role for finding in findings for role in finding.roles)
        detail = f"images: {', '.join(f'{n} in {role}' for role, n in sorted(sides.items()))}"
    return f"{_many(len(findings), noun)} {wrong}" + (f" ({detail})" if detail else "")


def _many(count: int, noun: str) -> str:
    return f"{count} {noun if count == 1 else _PLURALS.get(noun, noun + 's')}"


def sample_for_folds(
    records: Sequence[Record], groups: Sequence[int], usable: Sequence[int], folds: int, most: int
) -> list[int]:
    """Return at most `most` usable indices, without the classes that have fewer groups than folds."""
    if len(usable) > most:
        usable = sorted(np.random.default_rng(0).choice(usable, most, replace=False).tolist())
    sizes = Counter(code for code, _ in {(records[i].diagnosis, groups[i]) for i in usable})
    return [i for i in usable if sizes[records[i].diagnosis] >= folds]
