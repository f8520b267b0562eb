"""Wrong labels: contradictions, labels that a reference or a classifier doubts, and classes too small to score.

Likely label errors come from confident learning (cleanlab; Northcutt et al. 2021, doi 10.1613/jair.1.12125): a linear
classifier is fitted on embeddings of a network that never saw these labels, in folds that never cut through a lesion or
a group of near duplicates, and doubts some labels more firmly than is usual for their class. A suspect is a reason to
look at the image, never a correction.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dermlens.audit.findings import Finding, sample_for_folds
from dermlens.data.records import Record, members
from dermlens.diagnoses import to_isic2019
from dermlens.text import wilson_interval

VERSION = "2"
"""Raise it when other suspects would be found."""

HARD_TO_SCORE_WIDTH = 0.4  # of the 95 % interval of a sensitivity of 0.8
IMBALANCE = 10.0
FOLDS = 5
MAX_IMAGES = 50_000
MAX_SUSPECTS = 0.1  # of the images: a longer list of suspects helps nobody
_COMPONENTS = 200
_STRENGTH = 0.001
_COARSE = {"AKIEC": ("AK", "SCC", "BOD")}

Embeddings = npt.NDArray[np.float16]


def agrees(label: str, truth: str) -> bool:
    """Whether a label agrees with the reference's diagnosis: the same, or a finer or coarser name of it."""
    return label == truth or to_isic2019(label) == truth or truth in _COARSE.get(label, ())


def compatible(one: str, other: str) -> bool:
    """Whether two labels can mean the same lesion: one is the same as, finer or coarser than the other."""
    return agrees(one, other) or agrees(other, one)


def truths(records: Sequence[Record], pictures: Sequence[int], reference: Mapping[str, str]) -> list[str | None]:
    """Return the reference's diagnosis of each record's picture; None where it has none, or two different ones.

    A file without an ISIC id has the diagnosis of its copies.
    """
    result: list[str | None] = [None] * len(records)
    for group in members(pictures):
        diagnoses = {reference[name] for i in group if (name := records[i].isic_id or "") in reference}
        if len(diagnoses) == 1:
            for i in group:
                result[i] = next(iter(diagnoses))
    return result


def contradictions(records: Sequence[Record], pictures: Sequence[int]) -> list[list[int]]:
    """Return the pictures (as record indices) that have more than one diagnosis."""
    return [group for group in members(pictures) if len({records[i].diagnosis for i in group}) > 1]


def pairs_of(records: Sequence[Record], groups: Sequence[Sequence[int]]) -> dict[str, int]:
    """Count pictures by their diagnoses: {"AK/NV": 77}."""
    counts = Counter("/".join(sorted({records[i].diagnosis for i in group})) for group in groups)
    return dict(sorted(counts.items()))


def reference_counts(records: Sequence[Record], known: Sequence[str | None]) -> dict[str, Any]:
    """Count how many labels agree with the reference, by class."""
    wrong: Counter[str] = Counter()
    by_class: defaultdict[str, dict[str, int]] = defaultdict(lambda: {"known": 0, "disagree": 0})
    for label, truth in sorted((r.diagnosis, t or "") for r, t in zip(records, known, strict=True)):
        denied = bool(truth) and not agrees(label, truth)
        by_class[label]["known"] += bool(truth)
        by_class[label]["disagree"] += denied
        if denied:
            wrong[f"{label}->{truth}"] += 1
    stated = sum(row["known"] for row in by_class.values())
    return {
        "known": stated,
        "unknown": len(records) - stated,
        "agree": stated - wrong.total(),
        "disagree": wrong.total(),
        "by_pair": dict(wrong),
        "by_class": dict(by_class),
    }


def reference_findings(records: Sequence[Record], known: Sequence[str | None]) -> list[Finding]:
    """Return one finding for each kind of disagreement: a label, and another diagnosis in the reference."""
    wrong: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record, truth in zip(records, known, strict=True):
        if truth and not agrees(record.diagnosis, truth):
            wrong[record.diagnosis, truth].append(record)
    remedy = "Repair them: the reference's diagnosis replaces the label."
    findings = []
    for (label, truth), chosen in sorted(wrong.items()):
        evidence = f"{len(chosen)} images are labelled {label}; the reference says {truth}."
        findings.append(Finding.of("label_against_reference", chosen, evidence, remedy))
    return findings


def lesion_findings(records: Sequence[Record], pictures: Sequence[int]) -> list[Finding]:
    """Return lesions whose different pictures have different diagnoses."""
    by_lesion: defaultdict[str, list[tuple[int, Record]]] = defaultdict(list)
    for record, picture in zip(records, pictures, strict=True):
        if record.lesion_id is not None:
            by_lesion[record.lesion_id].append((picture, record))
    remedy = "Pass a reference that knows the diagnosis, or leave all its pictures out."
    findings = []
    for lesion, views in by_lesion.items():
        labels_of: defaultdict[int, set[str]] = defaultdict(set)
        for picture, record in views:
            labels_of[picture].add(record.diagnosis)
        if len({frozenset(labels) for labels in labels_of.values()}) > 1:
            labels = sorted(set().union(*labels_of.values()))
            evidence = f"Pictures of the lesion {lesion} are labelled {', '.join(labels)}."
            findings.append(Finding.of("lesion_under_two_diagnoses", [r for _, r in views], evidence, remedy))
    return findings


def support(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return for each class its images and lesions, by split, and how wide the interval of its score would be.

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
    """Return classes that are too small to score, and an imbalance between the classes."""
    findings = []
    for code, row in classes.items():
        if row["interval_width"] > HARD_TO_SCORE_WIDTH and any(r.split == "test" for r in records):
            chosen = [r for r in records if r.diagnosis == code and r.split == "test"]
            evidence = (
                f"{code} has {row['scored_lesions']} test lesions: the 95 % interval of a sensitivity of 80 % is "
                f"{row['interval_width'] * 100:.0f} percentage points wide."
            )
            remedy = "Report its score only with the interval, or pool predictions over folds."
            findings.append(Finding.of("class_hard_to_score", chosen, evidence, remedy))
    sizes = sorted((row["lesions"], code) for code, row in classes.items())
    if len(sizes) > 1 and sizes[-1][0] > IMBALANCE * sizes[0][0]:
        evidence = f"{sizes[-1][1]} has {sizes[-1][0]} lesions, {sizes[0][1]} has {sizes[0][0]}."
        remedy = "Report balanced accuracy and the score of each class, not accuracy alone."
        findings.append(Finding.of("class_imbalance", [], evidence, remedy))
    return findings


def wilson_width(share: float, n: int) -> float:
    """Return the width of the 95 % Wilson interval of a share of n cases; 1 where there are none."""
    low, high = wilson_interval(share, n) if n else (0.0, 1.0)
    return high - low


def _lesions(records: Sequence[Record]) -> int:
    return len({r.lesion_id or r.isic_id or r.image for r in records})


@dataclass(frozen=True)
class Suspect:
    """One image whose label is likely wrong."""

    image: int
    suggested: str  # the diagnosis that the classifier finds most likely
    score: float  # probability of the given label, out of fold, 0 to 1


def label_suspects(
    records: Sequence[Record], vectors: Embeddings, keys: Sequence[str], groups: Sequence[int], *, seed: int = 0
) -> list[Suspect]:
    """Return the images whose label is likely wrong, the most doubtful first; of a copied file each copy.

    Args:
        records: n images.
        vectors, keys: from `embed`; images without a key and classes of fewer than 5 groups are left out.
        groups: n numbers, equal for images that must stay in one fold.
    """
    embedded = [i for i, key in enumerate(keys) if key]
    chosen = sample_for_folds(records, groups, embedded, FOLDS, MAX_IMAGES)
    names = sorted({records[i].diagnosis for i in chosen})
    if len(names) < 2:
        return []
    labels = np.array([names.index(records[i].diagnosis) for i in chosen])
    by_fold = out_of_fold(vectors[chosen], labels, np.array([groups[i] for i in chosen]), len(names), seed)
    return [Suspect(chosen[row], names[label], score) for row, label, score in ranked(labels, by_fold)]


def out_of_fold(
    vectors: Embeddings, labels: npt.NDArray[np.int64], groups: npt.NDArray[Any], classes: int, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Return probabilities (n, classes) of a linear classifier, each row by one that saw no image of its group."""
    result = np.full((len(labels), classes), 1e-6)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings(), threadpool_limits(1):  # small products: on a busy machine threads only wait
        warnings.simplefilter("ignore", UserWarning)  # a rare class may miss a fold
        warnings.simplefilter("ignore", ConvergenceWarning)
        for train, test in folds.split(vectors, labels, groups):
            parts = min(_COMPONENTS, vectors.shape[1], len(train))
            probe = make_pipeline(
                StandardScaler(),
                PCA(parts, svd_solver="randomized", random_state=seed),
                LogisticRegression(C=_STRENGTH, max_iter=200),
            )
            probe.fit(vectors[train].astype(np.float32), labels[train])
            result[np.ix_(test, probe.classes_)] = probe.predict_proba(vectors[test].astype(np.float32))
    result /= result.sum(axis=1, keepdims=True)
    return result


def ranked(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """Return (row, more likely class, score) of likely label errors, the most doubtful first."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    issues = find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    scores = get_label_quality_scores(labels, probabilities, method="self_confidence")
    best = probabilities.argmax(axis=1)
    rows = [int(row) for row in np.flatnonzero(issues & (best != labels))]
    rows.sort(key=lambda row: (scores[row], row))
    most = max(1, int(MAX_SUSPECTS * len(labels)))
    return [(row, int(best[row]), round(float(scores[row]), 6)) for row in rows[:most]]


def suspect_findings(records: Sequence[Record], suspects: Sequence[Suspect]) -> list[Finding]:
    """Return one finding for each suspect, in order."""
    remedy = "Look at the image again; a repair never changes a label for this reason."
    findings = []
    for place, s in enumerate(suspects, start=1):
        evidence = (
            f"Labelled {records[s.image].diagnosis}; a classifier that never saw its lesion suggests {s.suggested} "
            f"(score {s.score:.3f}, 0 is the most doubtful; {place} of {len(suspects)})."
        )
        chosen = [records[s.image]]
        findings.append(Finding.of("label_suspect", chosen, evidence, remedy, suggested=s.suggested))
    return findings


def suspects_by_pair(records: Sequence[Record], suspects: Sequence[Suspect]) -> dict[str, int]:
    """Count suspects by given and suggested label: {"NV->MEL": 12}."""
    return dict(Counter(f"{records[s.image].diagnosis}->{s.suggested}" for s in suspects).most_common())
