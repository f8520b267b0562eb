"""What a training learns from: readable, audited images with their roles, in one order for the whole run.

And what the starting weights have seen, so that a model made from them is never scored on it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from dermlens.audit.findings import Finding, basic_findings, hash_records, repair_command, summary
from dermlens.bundle.bundle import HASH_CHARS, Seen
from dermlens.data.records import Dataset, Record, lesions
from dermlens.errors import DataError, LeakageError
from dermlens.files import write_csv, write_text
from dermlens.networks.weight_files import WORDS, published_for
from dermlens.reporting.progress import track
from dermlens.training.features import Images
from dermlens.training.recipe import Recipe
from dermlens.training.split import ROLES, assign_roles, find_crossing_groups, role_table

MIN_CLASSES = 2
SeenByRole = dict[str, dict[str, list[str]]]
KINDS = ("content_hashes", "lesion_ids", "isic_ids")
STARTING_WEIGHTS = "weights"  # the role in seen.json of everything that the starting weights have seen


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

    def images(self, rows: np.ndarray | None = None) -> Images:
        """Return the images of the rows (all when None)."""
        rows = np.arange(len(self.records)) if rows is None else rows
        return Images(self.pick(rows), [self.hashes[i] for i in rows])

    def lesions(self, rows: np.ndarray | None = None) -> list[int]:
        """Return the lesion number of each row (of all images when None)."""
        numbers = lesions(self.records, self.hashes)
        return numbers if rows is None else [numbers[i] for i in rows]

    @property
    def lesions_known(self) -> float:
        """Share of the images with a lesion id; each of the other images counts as a lesion of its own."""
        return sum(bool(r.lesion_id) for r in self.records) / max(1, len(self.records))

    def lesion_prior(self) -> tuple[float, ...]:
        """Return class frequencies by lesion over all roles: those of the population that the images came from."""
        pairs = {(lesion, int(self.labels[i])) for i, lesion in enumerate(self.lesions())}
        counts = Counter(label for _, label in pairs)
        return tuple(counts[i] / len(pairs) for i in range(len(self.codes)))

    def seen(self, isic_ids_of_lesion: Mapping[str, Sequence[str]]) -> SeenByRole:
        """Return role -> {"content_hashes", "lesion_ids", "isic_ids"} of its images and their lesions."""
        result: SeenByRole = {}
        for role in ROLES:
            rows = self.rows(role)
            ids = {r.lesion_id for r in self.pick(rows) if r.lesion_id}
            isic_ids = {r.isic_id for r in self.pick(rows) if r.isic_id}
            isic_ids |= {other for lesion in ids for other in isic_ids_of_lesion.get(lesion, ())}
            hashes = {self.hashes[i][:HASH_CHARS] for i in rows}
            result[role] = dict(zip(KINDS, (sorted(hashes), sorted(ids), sorted(isic_ids)), strict=True))
        return result

    def write(self, folder: Path) -> None:
        """Write `split.csv` (every image with its role) and `audit.json` (what the audit found). Raises OSError."""
        rows = [
            (r.image, r.diagnosis, role, r.lesion_id, r.isic_id, r.source, r.domain, digest)
            for r, role, digest in zip(self.records, self.roles, self.hashes, strict=True)
        ]
        rows += [(image, "", "unreadable", "", "", "", "", "") for image in self.unreadable]
        head = ("image", "diagnosis", "role", "lesion_id", "isic_id", "source", "domain", "sha256")
        write_csv(folder / "split.csv", [head, *rows])
        write_text(folder / "audit.json", json.dumps([asdict(finding) for finding in self.findings], indent=1) + "\n")


def prepare(dataset: Dataset, recipe: Recipe, *, allow_leakage: bool, console: Console) -> Material:
    """Audit the data set, print what is found, assign roles and refuse leakage."""
    for note in dataset.notes:
        console.print(note)
    with track("Reading and hashing", len(dataset.records), console) as advance:
        every_hash = hash_records(dataset.records, progress=advance)
    findings = basic_findings(dataset.records, every_hash)
    console.print(f"Audit of {len(dataset.records)} images:")
    for line in summary(findings) or ["no problems found"]:
        console.print(f"  {line}")
    readable = [(record, digest) for record, digest in zip(dataset.records, every_hash, strict=True) if digest]
    records, hashes = tuple(record for record, _ in readable), tuple(digest for _, digest in readable)
    codes = tuple(sorted({r.diagnosis for r in records}))
    if len(codes) < MIN_CLASSES:
        raise DataError(
            f"The data set has {len(codes)} class with readable images ({', '.join(codes)}). At least two are needed.",
            remedy="Add images of other diagnoses, one folder for each.",
            code="too_few_classes",
        )
    roles = assign_roles(records, hashes, fractions=recipe.fractions, seed=recipe.seed)
    _print_roles(records, hashes, roles, codes, console)
    crossing = find_crossing_groups(records, hashes, roles)
    if crossing or any(finding.kind == "contradicting_labels" for finding in findings):
        console.print(f"Repair it: {repair_command(dataset)}", style="bold", soft_wrap=True)
    if crossing and not allow_leakage:
        raise LeakageError(
            f"The split leaks: {len(crossing)} pictures, lesions or patients are in more than one role, first "
            f"{records[crossing[0][0]].image}. A score on such a test is worthless.",
            remedy="Repair it with the command above and train on repaired.csv "
            f"(`dermlens train repaired.csv --images {dataset.root}`), "
            "or pass --allow-leakage to train anyway with the mark 'leaky' on every result.",
        )
    return Material(
        records=records,
        hashes=hashes,
        roles=np.array(roles),
        labels=np.array([codes.index(r.diagnosis) for r in records]),
        codes=codes,
        findings=tuple(findings),
        leaky=bool(crossing),
        unreadable=tuple(r.image for r, digest in zip(dataset.records, every_hash, strict=True) if digest is None),
    )


def _print_roles(
    records: Sequence[Record], hashes: Sequence[str], roles: Sequence[str], codes: Sequence[str], console: Console
) -> None:
    table = role_table(records, hashes, roles)
    console.print("Images (lesions) by role:")
    width = max(len(c) for c in codes)
    console.print(f"  {'':{width}} " + " ".join(f"{role:>14}" for role in ROLES))
    for code in codes:
        cells = (table[code].get(role, (0, 0)) for role in ROLES)
        console.print(f"  {code:{width}} " + " ".join(f"{n:6d} ({g:5d})" for n, g in cells))


def check_lineage(
    weights: str, material: Material, *, allow_leakage: bool, console: Console
) -> tuple[Material, SeenByRole]:
    """Refuse to select, calibrate or test on images that the starting weights have seen; mark the run when allowed.

    Args:
        weights: a word (public weights) or the path of a weight file.

    Returns:
        The material, marked leaky where allowed, and the role to add to `seen.json` (none for public weights).

    Raises:
        LeakageError: held-out images were seen, or nothing is recorded of a `.keras` file, and it is not allowed.
    """
    path = Path(weights)
    if weights in WORDS or published_for(path.name) is not None:
        return material, {}
    known = _seen_by(path)
    if known is None and path.suffix != ".keras":
        console.print(
            f"There is no record of the images that {weights} was trained on. If images of your test are among them, "
            "the scores will be too good.",
            style="yellow",
            soft_wrap=True,
        )
        return material, {}
    if known is None:
        message = f"There is no record of the images that {weights} was trained on (no readable seen.json beside it)."
        return _refuse_or_mark(message, material, allow_leakage, console), {}
    seen = Seen(*(frozenset(known[kind]) for kind in KINDS))
    overlap = [
        record.image
        for record, digest, role in zip(material.records, material.hashes, material.roles, strict=True)
        if role != "train" and seen.reason(digest, record.lesion_id, record.isic_id) is not None
    ]
    if overlap:
        message = f"{weights} has already seen {len(overlap)} images of the held-out roles, first {overlap[0]}."
        material = _refuse_or_mark(message, material, allow_leakage, console)
    return material, {STARTING_WEIGHTS: known}


def _seen_by(weights: Path) -> dict[str, list[str]] | None:
    """Return everything that the run of a weight file has seen, in any role, from the `seen.json` beside it."""
    try:
        by_role: SeenByRole = json.loads((weights.parent / "seen.json").read_text(encoding="utf-8"))
        return {kind: sorted({item for role in by_role.values() for item in role[kind]}) for kind in KINDS}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _refuse_or_mark(message: str, material: Material, allow_leakage: bool, console: Console) -> Material:
    if not allow_leakage:
        raise LeakageError(
            message, remedy="Start from other weights, or pass --allow-leakage to train anyway with the mark 'leaky'."
        )
    console.print(f"LEAKY: {message}", style="red")
    return replace(material, leaky=True)
