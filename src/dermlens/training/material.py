"""What a training learns from: readable, audited images with their roles, in one order for the whole run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from dermlens.audit.findings import Finding, audit, hash_records, repair_command, summary
from dermlens.data.records import Dataset, Record
from dermlens.errors import DataError, LeakageError
from dermlens.reporting.progress import track
from dermlens.training.recipe import Recipe
from dermlens.training.split import ROLES, assign_roles, role_table

LEAKING = ("same_image_across_split", "lesion_across_split", "patient_across_split")
MIN_CLASSES = 2


@dataclass(frozen=True)
class Material:
    """Readable images with their role and class index, in one order for the whole run."""

    records: tuple[Record, ...]
    hashes: tuple[str, ...]
    roles: np.ndarray
    labels: np.ndarray
    codes: tuple[str, ...]
    findings: tuple[Finding, ...]
    leaky: bool
    unreadable: tuple[str, ...]

    def rows(self, role: str) -> np.ndarray:
        return np.flatnonzero(self.roles == role)

    def pick(self, rows: np.ndarray) -> list[Record]:
        return [self.records[i] for i in rows]

    def groups(self, rows: np.ndarray) -> list[str]:
        """Return the lesion of each row, or its content hash when the lesion is unknown."""
        return [self.records[i].lesion_id or self.records[i].isic_id or self.hashes[i] for i in rows]

    def lesion_prior(self) -> tuple[float, ...]:
        """Return class frequencies by lesion over all roles: what the population holds that the images came from."""
        groups = self.groups(np.arange(len(self.records)))
        lesions = {(group, int(self.labels[i])) for i, group in enumerate(groups)}
        counts = Counter(label for _, label in lesions)
        return tuple(counts[i] / len(lesions) for i in range(len(self.codes)))


def prepare(dataset: Dataset, recipe: Recipe, *, allow_leakage: bool, console: Console) -> Material:
    """Audit the data set, print what is found, assign roles and refuse leakage."""
    for note in dataset.notes:
        console.print(note, highlight=False)
    with track("Reading and hashing", len(dataset.records), console) as advance:
        hashes = hash_records(dataset.records, progress=advance)
    findings = audit(dataset.records, hashes)
    console.print(f"Audit of {len(dataset.records)} images:", highlight=False)
    for line in summary(findings) or ["nothing found"]:
        console.print(f"  {line}", highlight=False)
    leaks = [f for f in findings if f.kind in LEAKING]
    if leaks or any(f.kind == "contradicting_labels" for f in findings):
        console.print(f"Repair it: {repair_command(dataset)}", style="bold", highlight=False, soft_wrap=True)
    if leaks and not allow_leakage:
        raise LeakageError(
            f"Training and test share images or lesions ({len(leaks)} findings); a score on such a test is worthless.",
            remedy="Repair it with the command above and train on repaired.csv "
            f"(`dermlens train repaired.csv --images {dataset.root}`), "
            "or pass --allow-leakage to train anyway with the mark 'leaky' on every result.",
        )
    good = [i for i, h in enumerate(hashes) if h is not None]
    records = tuple(dataset.records[i] for i in good)
    kept_hashes = tuple(str(hashes[i]) for i in good)
    codes = tuple(sorted({r.diagnosis for r in records}))
    if len(codes) < MIN_CLASSES:
        raise DataError(
            f"The data set has {len(codes)} class with readable images ({', '.join(codes)}). At least two are needed.",
            remedy="Add images of other diagnoses, one folder for each.",
            code="too_few_classes",
        )
    roles = assign_roles(records, kept_hashes, fractions=recipe.fractions, seed=recipe.seed)
    _print_roles(records, roles, codes, console)
    return Material(
        records=records,
        hashes=kept_hashes,
        roles=np.array(roles),
        labels=np.array([codes.index(r.diagnosis) for r in records]),
        codes=codes,
        findings=tuple(findings),
        leaky=bool(leaks),
        unreadable=tuple(dataset.records[i].image for i, h in enumerate(hashes) if h is None),
    )


def _print_roles(records: Sequence[Record], roles: Sequence[str], codes: Sequence[str], console: Console) -> None:
    table = role_table(records, roles)
    console.print("Images (lesions) by role:", highlight=False)
    width = max(len(c) for c in codes)
    console.print(f"  {'':{width}} " + " ".join(f"{role:>14}" for role in ROLES), highlight=False)
    for code in codes:
        cells = (table[code].get(role, (0, 0)) for role in ROLES)
        console.print(f"  {code:{width}} " + " ".join(f"{n:6d} ({g:5d})" for n, g in cells), highlight=False)
