"""What is wrong with the labels: contradictions, labels that a reference denies, classes too small to score."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dermlens.audit.findings import Finding
from dermlens.data.groups import members
from dermlens.data.records import Record
from dermlens.diagnoses import to_isic2019

HARD_TO_SCORE_WIDTH = 0.4  # of the 95 % interval of a sensitivity of 0.8
IMBALANCE = 10.0
_COARSE = {"AKIEC": ("AK", "SCC", "BOD")}
_Z = 1.959964


def agrees(label: str, truth: str) -> bool:
    """Whether a label can stand beside the reference's diagnosis: the same, or a finer or coarser name of it."""
    return label == truth or to_isic2019(label) == truth or truth in _COARSE.get(label, ())


def compatible(one: str, other: str) -> bool:
    """Whether two labels can mean the same lesion: one is the same as, finer or coarser than the other."""
    return agrees(one, other) or agrees(other, one)


def truths(records: Sequence[Record], pictures: Sequence[int], reference: Mapping[str, str]) -> list[str | None]:
    """Return for each record what the reference says of its picture; None where it says nothing, or two things.

    A file without an ISIC id of its own has the diagnosis of its copies.
    """
    result: list[str | None] = [None] * len(records)
    for group in members(pictures):
        said = {reference[name] for i in group if (name := records[i].isic_id or "") in reference}
        if len(said) == 1:
            for i in group:
                result[i] = next(iter(said))
    return result


def contradictions(records: Sequence[Record], pictures: Sequence[int]) -> list[list[int]]:
    """Return the pictures (as record indices) that stand under more than one diagnosis."""
    return [group for group in members(pictures) if len({records[i].diagnosis for i in group}) > 1]


def pairs_of(records: Sequence[Record], groups: Sequence[Sequence[int]]) -> dict[str, int]:
    """Count pictures by the diagnoses they stand under: {"AK/NV": 77}."""
    counts = Counter("/".join(sorted({records[i].diagnosis for i in group})) for group in groups)
    return dict(sorted(counts.items()))


def reference_counts(records: Sequence[Record], known: Sequence[str | None]) -> dict[str, Any]:
    """Count how the labels stand to the reference, class by class."""
    wrong = Counter((r.diagnosis, t) for r, t in zip(records, known, strict=True) if t and not agrees(r.diagnosis, t))
    told = sum(t is not None for t in known)
    by_class: defaultdict[str, dict[str, int]] = defaultdict(lambda: {"known": 0, "disagree": 0})
    for record, truth in zip(records, known, strict=True):
        row = by_class[record.diagnosis]
        row["known"] += truth is not None
        row["disagree"] += truth is not None and not agrees(record.diagnosis, truth)
    return {
        "known": told,
        "unknown": len(records) - told,
        "agree": told - wrong.total(),
        "disagree": wrong.total(),
        "by_pair": {f"{label}->{truth}": n for (label, truth), n in sorted(wrong.items())},
        "by_class": dict(sorted(by_class.items())),
    }


def reference_findings(records: Sequence[Record], known: Sequence[str | None]) -> list[Finding]:
    """Return one finding for each kind of disagreement: label and what the reference says instead."""
    wrong: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record, truth in zip(records, known, strict=True):
        if truth and not agrees(record.diagnosis, truth):
            wrong[record.diagnosis, truth].append(record)
    return [
        Finding(
            "label_against_reference",
            "error",
            tuple(r.image for r in chosen),
            f"{len(chosen)} images are labelled {label}, and the reference says {truth}.",
            "Repair them: the reference's diagnosis replaces the label.",
            tuple(r.diagnosis for r in chosen),
            tuple(r.split or "" for r in chosen),
        )
        for (label, truth), chosen in sorted(wrong.items())
    ]


def lesion_findings(records: Sequence[Record], pictures: Sequence[int]) -> list[Finding]:
    """Return lesions whose different pictures carry different diagnoses (one picture under two is told elsewhere)."""
    by_lesion: defaultdict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.lesion_id is not None:
            by_lesion[record.lesion_id].append(index)
    findings = []
    for lesion, group in by_lesion.items():
        labels_of: defaultdict[int, set[str]] = defaultdict(set)
        for i in group:
            labels_of[pictures[i]].add(records[i].diagnosis)
        told = list(labels_of.values())
        if any(labels != told[0] for labels in told):
            labels = sorted(set().union(*told))
            chosen = [records[i] for i in group]
            findings.append(
                Finding(
                    "lesion_under_two_diagnoses",
                    "error",
                    tuple(r.image for r in chosen),
                    f"Pictures of the lesion {lesion} stand under {', '.join(labels)}.",
                    "Pass a reference that knows the diagnosis, or take all its pictures out.",
                    tuple(r.diagnosis for r in chosen),
                    tuple(r.split or "" for r in chosen),
                )
            )
    return findings


def support(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return for each class what its size allows: images and lesions, by split, and the width of a score's interval.

    `interval_width` is that of the 95 % Wilson interval of a sensitivity of 0.8, on the lesions of the test split,
    or on all where there is none.
    """
    has_test = any(r.split == "test" for r in records)
    result = {}
    for code in sorted({r.diagnosis for r in records}):
        own = [r for r in records if r.diagnosis == code]
        scored = [r for r in own if r.split == "test"] if has_test else own
        lesions = _lesions(scored)
        result[code] = {
            "images": len(own),
            "lesions": _lesions(own),
            "by_split": dict(sorted(Counter(r.split or "none" for r in own).items())),
            "scored_lesions": lesions,
            "interval_width": round(wilson_width(0.8, lesions), 3),
        }
    return result


def support_findings(records: Sequence[Record], classes: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Return classes whose score would say little, and an imbalance between the classes."""
    findings = []
    for code, row in classes.items():
        if row["interval_width"] > HARD_TO_SCORE_WIDTH and any(r.split == "test" for r in records):
            chosen = [r for r in records if r.diagnosis == code and r.split == "test"]
            evidence = (
                f"{code} is scored on {row['scored_lesions']} lesions: the 95 % interval of a sensitivity of 80 % is "
                f"{row['interval_width'] * 100:.0f} points wide."
            )
            remedy = "Give its score only with its interval, or pool predictions over folds."
            images, labels = tuple(r.image for r in chosen), tuple(r.diagnosis for r in chosen)
            findings.append(Finding("class_hard_to_score", "warning", images, evidence, remedy, labels))
    sizes = sorted((row["lesions"], code) for code, row in classes.items())
    if len(sizes) > 1 and sizes[-1][0] > IMBALANCE * sizes[0][0]:
        evidence = f"{sizes[-1][1]} has {sizes[-1][0]} lesions, {sizes[0][1]} has {sizes[0][0]}."
        remedy = "Judge by balanced accuracy and by class, never by accuracy alone."
        findings.append(Finding("class_imbalance", "note", (), evidence, remedy))
    return findings


def wilson_width(share: float, n: int) -> float:
    """Return the width of the 95 % Wilson interval of a share seen in n cases; 1 where there are none."""
    if n == 0:
        return 1.0
    spread = _Z * (share * (1 - share) / n + _Z**2 / (4 * n**2)) ** 0.5
    return float(2 * spread / (1 + _Z**2 / n))


def _lesions(records: Sequence[Record]) -> int:
    return len({r.lesion_id or r.isic_id or r.image for r in records})
