"""What an audit found: findings, counts, and the verdict in three sentences that a clinician understands."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermlens.audit.detectors import Artefacts
from dermlens.audit.duplicates import NearPair
from dermlens.audit.facts import ImageFacts
from dermlens.audit.findings import KINDS, Finding, severity_of, summary
from dermlens.audit.repair import Repair, plan_repair
from dermlens.audit.shortcuts import Shortcuts
from dermlens.data.records import Dataset, data_fingerprint
from dermlens.diagnoses import display_name
from dermlens.html import render

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "dermlens/audit/1"
LEAST_LESIONS = 4  # of a class: one for each role of a training
_USELESS = ("unreadable", "near_uniform", "blurred", "dark", "overexposed")
_CROSSING = ("same_image_across_split", "lesion_across_split", "patient_across_split", "near_duplicate_across_split")


@dataclass(frozen=True, eq=False)
class Audit:
    """Everything an audit found; `as_dict` is the content of `audit.json`.

    Attributes:
        hashes, facts, known: one for each record of `dataset`; `known` is the reference's diagnosis.
        pairs: near duplicates within the data set.
        counts: how many images are concerned, by name.
        classes: the size of each class, see `labels.support`.
    """

    dataset: Dataset
    hashes: tuple[str | None, ...]
    facts: tuple[ImageFacts, ...]
    known: tuple[str | None, ...]
    pairs: tuple[NearPair, ...]
    findings: tuple[Finding, ...]
    counts: dict[str, Any]
    classes: dict[str, dict[str, Any]]
    shortcuts: Shortcuts | None
    artefacts: Artefacts
    reference: Path | None = None

    @property
    def ceiling(self) -> float | None:
        """The best test accuracy of a model that fits its training labels; None without train and test images.

        Certain: only pictures that are the same by bytes or ISIC id count.
        """
        return self._reachable("test_images_only_under_another_label_in_train")

    @property
    def inferred_ceiling(self) -> float | None:
        """`ceiling` when near duplicates, too, count as the same picture; never above it."""
        return self._reachable("test_images_only_under_another_label_with_near_copies")

    def _reachable(self, wrong: str) -> float | None:
        test = int(self.counts["test_images"])
        if not test or not any(r.split == "train" for r in self.dataset.records):
            return None
        return round((test - int(self.counts[wrong])) / test, 6)

    def repair(self, *, keep_train: bool = False) -> Repair:
        """Plan the repair of what was found."""
        return plan_repair(
            self.dataset.records,
            self.hashes,
            truths=self.known,
            pairs=self.pairs,
            areas_px=[f.width_px * f.height_px for f in self.facts],
            keep_train=keep_train,
        )

    def verdict(self) -> list[str]:
        """Return three sentences: the labels, the test, the advice."""
        return [_on_labels(self), _on_test(self), _advice(self)]

    def as_dict(self, repair: Repair | None = None) -> dict[str, Any]:
        """Return plain values for JSON."""
        by_kind = Counter(finding.kind for finding in self.findings)
        return {
            "schema": SCHEMA,
            "data": str(self.dataset.origin or self.dataset.root),
            "layout": self.dataset.layout,
            "reference": str(self.reference) if self.reference else None,
            "fingerprint": data_fingerprint(self.dataset.records, self.hashes),
            "notes": list(self.dataset.notes),
            "counts": self.counts,
            "findings_by_kind": {kind: by_kind[kind] for kind in KINDS if kind in by_kind},
            "test_accuracy_ceiling": self.ceiling,
            "test_accuracy_ceiling_inferred": self.inferred_ceiling,
            "classes": self.classes,
            "shortcuts": asdict(self.shortcuts) if self.shortcuts else None,
            "artefacts": {name: asdict(rates) for name, rates in self.artefacts.items()},
            "repair": repair.counts() if repair else None,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each finding, the most serious kinds first."""
        import pandas as pd

        names = [field.name for field in fields(Finding)]
        return pd.DataFrame([asdict(finding) for finding in self.findings], columns=names)

    def _repr_html_(self) -> str:
        return render("audit_cell.html", verdict=self.verdict(), lines=summary(self.findings))


def as_json(audit: dict[str, Any]) -> str:
    """Return the text of `audit.json`."""
    return json.dumps(audit, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def ceiling_text(audit: Audit) -> str:
    """Return the best possible test accuracy, with the one that counts near copies where that is lower."""
    certain, inferred = audit.ceiling or 0.0, audit.inferred_ceiling or 0.0
    if inferred == certain:
        return f"{certain * 100:.1f} %"
    if certain == 1:
        return f"{inferred * 100:.1f} % (near copies counted as the same picture, inferred)"
    return f"{certain * 100:.1f} % ({inferred * 100:.1f} % with near copies counted as the same picture, inferred)"


def _on_labels(audit: Audit) -> str:
    counts = audit.counts
    certain, near = counts["contradicting_images"], counts["contradicting_only_by_near_copies"]
    against = counts["labels_against_reference"]
    reference = ""
    if against:
        wrong = against["disagree"]
        reference = f"; the reference contradicts the labels of {wrong or 'no'} images"
    if not certain and not near:
        return f"None of the {counts['different_pictures']:,} pictures has two diagnoses{reference}."
    if not certain:
        have = "picture has" if near == 1 else "pictures have"
        return f"{near} {have} two diagnoses, in different files (inferred){reference}."
    by_pair = counts["contradictions_by_pair"].items()
    pairs = ", ".join(f"{n} as {' and '.join(map(display_name, pair.split('/')))}" for pair, n in by_pair)
    more = f", and {near} more in different files (inferred)" if near else ""
    have = "has" if certain == 1 else "have"
    return f"{certain} of {counts['different_pictures']:,} pictures {have} two diagnoses ({pairs}){more}{reference}."


def _on_test(audit: Audit) -> str:
    counts, unseen = audit.counts, _without_lesion_id(audit)
    if audit.ceiling is None:
        crossing = sum(finding.kind in _CROSSING for finding in audit.findings)
        if crossing:
            return f"{crossing} pictures, lesions or patients are on both sides of the split, so it is no valid test."
        return (
            "The data set has no test of its own, so nothing leaks into one; a split must keep lesions together"
            f"{f', but {unseen}' if unseen else ''}."
        )
    leaked, near, test = (
        counts[name] for name in ("test_images_leaked_any", "test_images_leaked_only_by_near_duplicate", "test_images")
    )
    ceiling = f"a model that learns the training labels exactly is right on at most {ceiling_text(audit)} of the test"
    if leaked:
        more = f", and {near} more look like copies of training images (inferred)" if near else ""
        return (
            f"{leaked} of the {test} test images show a picture, lesion or patient that is also in training{more}. "
            f"A score on this test cannot be trusted: {ceiling}."
        )
    if near:
        return f"{near} of the {test} test images look like copies of training images (inferred); {ceiling}."
    if unseen:
        return f"None of the {test} test images is known to be in training, by content and looks; {unseen}."
    return f"None of the {test} test images is in training; {ceiling}."


def _without_lesion_id(audit: Audit) -> str:
    without, images = audit.counts["images_without_lesion_id"], audit.counts["images"]
    if not without:
        return ""
    return f"{without:,} of {images:,} images have no lesion id, so other views of a lesion cannot be recognised"


def _advice(audit: Audit) -> str:
    kinds = Counter(finding.kind for finding in audit.findings)
    warning = " Do not trust the model on images from another source before you have tested it there."
    warning = warning if kinds["source_shortcut"] else ""
    pictures = audit.counts["different_pictures"] or 1
    useless = {image for f in audit.findings if f.kind in _USELESS for image in f.images}
    few = [code for code, of in audit.classes.items() if of["lesions"] < LEAST_LESIONS]
    if any(finding.severity == "error" for finding in audit.findings):
        return f"Do not train on this data set as it is: repair it first and train on the repaired list.{warning}"
    if len(audit.classes) < 2 or few:
        why = (
            f"too few lesions of {', '.join(few)}; each class needs {LEAST_LESIONS}" if few else "it needs two classes"
        )
        return f"Training will refuse this data set: {why}."
    if 2 * len(useless) > pictures:
        images = f"{len(useless):,} of {audit.counts['images']:,} pictures"
        return f"Do not train on this data set: {images} show hardly anything."
    others = [kind for kind in kinds if kind != "source_shortcut" and severity_of(kind) == "warning"]
    if others or warning:
        return f"You can train on this data set; first look at the warnings below.{warning}"
    if _without_lesion_id(audit):
        return "No problems found, as far as it can be seen without lesion ids."
    return "You can train on this data set as it is."
