"""Shortcuts: can facts of the file and of the border predict the class without the lesion? Cross-validated.

A model that uses such a shortcut scores well here and fails elsewhere. Folds never cut through a lesion.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from dermlens.audit.facts import ImageFacts
from dermlens.audit.findings import Finding, sample_for_folds
from dermlens.data.records import Record

VERSION = "1"
"""Raise it when the probes would score otherwise."""

FOLDS = 5
MAX_IMAGES = 20_000
CLEAR_GAIN = 0.1  # balanced accuracy above chance from which a shortcut is reported
_TREES = 60
_DIGITS = re.compile(r"(\d+)(?!.*\d)")
_NAMES = {
    "image_size": "width and height",
    "compression": "the JPEG quantisation table",
    "file_number": "the number in the file's name",
    "border": "the colour of the border and dark corners",
}


@dataclass(frozen=True)
class Probe:
    """How well one family of facts predicts the class, out of fold."""

    family: str
    facts: str
    accuracy: float
    balanced_accuracy: float


@dataclass(frozen=True)
class Shortcuts:
    """The probes, the family "all" first, and the scores of always guessing the most common class."""

    images: int
    majority_accuracy: float
    chance_balanced_accuracy: float
    probes: tuple[Probe, ...]
    dark_corners_by_class: dict[str, float]


def probe_shortcuts(records: Sequence[Record], facts: Sequence[ImageFacts], groups: Sequence[int]) -> Shortcuts | None:
    """Return how well facts other than the lesion predict the class; None where the classes are too small for folds.

    Args:
        records, facts: n images; unreadable ones and classes of fewer than `FOLDS` groups are left out.
        groups: n numbers, equal for images that must stay in one fold.
    """
    readable = [i for i, fact in enumerate(facts) if fact.quality is not None]
    chosen = sample_for_folds(records, groups, readable, FOLDS, MAX_IMAGES)
    labels = np.array([records[i].diagnosis for i in chosen])
    classes = sorted(set(labels.tolist()))
    if len(classes) < 2:
        return None
    families = {name: _matrix(name, records, facts, chosen) for name in _NAMES}
    families = {name: values for name, values in families.items() if values.std(axis=0).max() > 0}
    tried = {"all": np.hstack(list(families.values())), **families} if families else {}
    fold_groups = np.array([groups[i] for i in chosen])
    corners = np.array([facts[i].dark_corners >= 2 for i in chosen])
    probes = tuple(_probe(name, values, labels, fold_groups) for name, values in tried.items())
    return Shortcuts(
        len(chosen),
        round(max(Counter(labels.tolist()).values()) / len(labels), 4),
        round(1 / len(classes), 4),
        probes,
        {code: round(float(corners[labels == code].mean()), 4) for code in classes},
    )


def shortcut_findings(shortcuts: Shortcuts | None) -> list[Finding]:
    """Return a warning for each family of facts that predicts the class clearly better than chance."""
    findings = []
    for probe in shortcuts.probes if shortcuts else ():
        if shortcuts and probe.balanced_accuracy > shortcuts.chance_balanced_accuracy + CLEAR_GAIN:
            evidence = (
                f"From {probe.facts} alone the class can be predicted with a balanced accuracy of "
                f"{probe.balanced_accuracy:.2f} (chance {shortcuts.chance_balanced_accuracy:.2f}) and an accuracy of "
                f"{probe.accuracy:.2f} (always the most common class: {shortcuts.majority_accuracy:.2f})."
            )
            remedy = "The classes come from different sources: balance them, and test on images from another source."
            findings.append(Finding.of("source_shortcut", [], evidence, remedy))
    return findings


def _probe(name: str, values: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Probe:
    labels = np.unique(labels, return_inverse=True)[1]  # scikit-learn takes classes called "0" and "1" for numbers
    forest = RandomForestClassifier(_TREES, min_samples_leaf=3, class_weight="balanced", random_state=0)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a rare class may miss a fold: it then counts as wrong
        predicted = cross_val_predict(forest, values, labels, cv=folds, groups=groups)
    what = _NAMES.get(name, "size, compression, file number and border")
    return Probe(
        name,
        what,
        round(float((predicted == labels).mean()), 4),
        round(float(balanced_accuracy_score(labels, predicted)), 4),
    )


def _matrix(name: str, records: Sequence[Record], facts: Sequence[ImageFacts], chosen: Sequence[int]) -> np.ndarray:
    tables = {table: place for place, table in enumerate(sorted({facts[i].quantisation for i in chosen}))}
    return np.array([_values(name, records[i], facts[i], tables) for i in chosen], dtype=np.float64)


def _values(name: str, record: Record, fact: ImageFacts, tables: dict[str, int]) -> list[float]:
    if name == "image_size":
        return [fact.width_px, fact.height_px]
    if name == "compression":
        return [tables[fact.quantisation]]
    if name == "file_number":
        digits = _DIGITS.search(record.path.stem)
        return [float(digits.group(1)[:15]) if digits else -1.0]
    return [*fact.border_rgb, float(fact.dark_corners)]
