"""What a training learns from: readable, audited images with their roles, in one order for the whole run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from dermlens.audit.findings import Finding, audit, hash_records, repair_command, summary
from dermlens.data.groups import lesions
from dermlens.data.records import Dataset, Record
from dermlens.errors import DataError, LeakageError
from dermlens.reporting.progress import track
from dermlens.training.recipe import Recipe
from dermlens.training.split import ROLES, assign_roles, find_crossing_groups, role_table

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

    def lesions(self, rows: np.ndarray | None = None) -> list[int]:
        """Return the lesion number of each row (of all images when None)."""
        numbers = lesions(self.records, self.hashes)
        return numbers if rows is None else [numbers[i] for i in rows]

    @property
    def lesions_known(self) -> float:
        """Share of the images with a lesion id; each of the other pictures counts as a lesion of its own."""
        return sum(bool(r.lesion_id) for r in self.records) / max(1, len(self.records))

    def lesion_prior(self) -> tuple[float, ...]:
        """Return class frequencies by lesion over all roles: what the population holds that the images came from."""
        found = {(lesion, int(self.labels[i])) for i, lesion in enumerate(self.lesions())}
        counts = Counter(label for _, label in found)
        return tuple(counts[i] / len(found) for i in range(len(self.codes)))


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
    _print_roles(records, kept_hashes, roles, codes, console)
    crossing = find_crossing_groups(records, kept_hashes, roles)
    if crossing or any(finding.kind == "contradicting_labels" for finding in findings):
        console.print(f"Repair it: {repair_command(dataset)}", style="bold", highlight=False, soft_wrap=True)
    if crossing and not allow_leakage:
        raise LeakageError(
            f"The split leaks: {len(crossing)} pictures, lesions or patients stand in more than one role, first "
            f"{records[crossing[0][0]].image}. A score on such a test is worthless.",
            remedy="Repair it with the command above and train on repaired.csv "
            f"(`dermlens train repaired.csv --images {dataset.root}`), "
            "or pass --allow-leakage to train anyway with the mark 'leaky' on every result.",
        )
    return Material(
        records=records,
        hashes=kept_hashes,
        roles=np.array(roles),
        labels=np.array([codes.index(r.diagnosis) for r in records]),
        codes=codes,
        findings=tuple(findings),
        leaky=bool(crossing),
        unreadable=tuple(dataset.records[i].image for i, h in enumerate(hashes) if h is None),
    )


def _print_roles(
    records: Sequence[Record], hashes: Sequence[str], roles: Sequence[str], codes: Sequence[str], console: Console
) -> None:
    table = role_table(records, hashes, roles)
    console.print("Images (lesions) by role:", highlight=False)
    width = max(len(c) for c in codes)
    console.print(f"  {'':{width}} " + " ".join(f"{role:>14}" for role in ROLES), highlight=False)
    for code in codes:
        cells = (table[code].get(role, (0, 0)) for role in ROLES)
        console.print(f"  {code:{width}} " + " ".join(f"{n:6d} ({g:5d})" for n, g in cells), highlight=False)
