"""What a training learns from: readable, audited images with their roles, in one order for the whole run.

What the starting weights have already seen, so that a model made from them is not scored on it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from dermlens.audit.findings import Finding, basic_findings, hash_records, repair_command, summary
from dermlens.bundle.bundle import Seen
from dermlens.data.records import Dataset, Record, lesions
from dermlens.errors import DataError, LeakageError
from dermlens.networks.weight_files import WORDS, published_for
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
    findings = basic_findings(dataset.records, hashes)
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


SeenByRole = Mapping[str, Mapping[str, list[str]]]
KINDS = ("content_hashes", "lesion_ids", "isic_ids")
LEARNED_FROM = "weights"  # the role in seen.json of all that the starting weights have met


def check_lineage(
    weights: str, material: Material, *, allow_leakage: bool, console: Console
) -> tuple[Material, dict[str, dict[str, list[str]]]]:
    """Refuse to select, calibrate or test on images that the starting weights have met; mark the run when allowed.

    Args:
        weights: a word (public weights) or the path of a weight file.

    Returns:
        The material, marked leaky where allowed, and the role to add to `seen.json` (none for public weights).

    Raises:
        LeakageError: held-out images were met, or nothing is recorded of a `.keras` file, and it is not allowed.
    """
    path = Path(weights)
    if weights in WORDS or published_for(path.name) is not None:
        return material, {}
    known = _seen_by(path)
    if known is None and path.suffix != ".keras":
        console.print(
            f"Nothing is recorded of what {weights} has been trained on. If it has met images of your test, the scores "
            "will be too good.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
        return material, {}
    if known is None:
        message = f"Nothing is recorded of what {weights} has been trained on (no readable seen.json beside it)."
        return _refuse_or_mark(message, material, allow_leakage, console), {}
    seen = Seen(*(frozenset(known[kind]) for kind in KINDS))
    overlap = [
        record.image
        for record, digest, role in zip(material.records, material.hashes, material.roles, strict=True)
        if role != "train" and seen.reason(digest, record.lesion_id, record.isic_id) is not None
    ]
    if overlap:
        message = f"{weights} has already met {len(overlap)} images of the held-out roles, first {overlap[0]}."
        material = _refuse_or_mark(message, material, allow_leakage, console)
    return material, {LEARNED_FROM: known}


def _seen_by(weights: Path) -> dict[str, list[str]] | None:
    """Return all that the run of a `.keras` file has met, in any role, from the `seen.json` beside it."""
    try:
        by_role: SeenByRole = json.loads((weights.parent / "seen.json").read_text(encoding="utf-8"))
        return {kind: sorted({item for role in by_role.values() for item in role[kind]}) for kind in KINDS}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _refuse_or_mark(message: str, material: Material, allow_leakage: bool, console: Console) -> Material:
    if not allow_leakage:
        raise LeakageError(
            message,
            remedy="Start from other weights, or pass --allow-leakage to train anyway with the mark 'leaky'.",
        )
    console.print(f"LEAKY: {message}", style="red", highlight=False)
    return replace(material, leaky=True)
