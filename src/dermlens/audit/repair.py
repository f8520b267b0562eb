"""Findings become a manifest: which images to use, with which label, and why not the others. Files are not touched.

In this order: unreadable files go; the reference's diagnosis replaces a label that it denies; what still contradicts
itself goes with all its copies; of the same picture one copy stays; of a lesion or patient on two sides of a split one
side stays; a class that has nothing left to learn from is dropped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dermlens.audit.duplicates import NearPair, linked
from dermlens.audit.labels import agrees
from dermlens.data.layouts import MANIFEST_COLUMNS
from dermlens.data.manifest import manifest_row
from dermlens.data.records import ROLE_NAMES, Record, lesion_groups, members, picture_groups
from dermlens.data.tables import write_table

COLUMNS = ("image", "diagnosis", "original_diagnosis", "lesion_id", "split", "included", "reason")
"""What every repaired manifest has; further columns follow where the data set knows more."""


@dataclass(frozen=True)
class Row:
    """What becomes of one image. `reason` begins with a word and a colon, "" where nothing was done."""

    record: Record
    diagnosis: str
    included: bool
    reason: str

    @property
    def relabelled(self) -> bool:
        return self.included and self.diagnosis != self.record.diagnosis


@dataclass(frozen=True)
class Repair:
    """A row for every image, in order, and the classes that lost everything with the reason."""

    rows: tuple[Row, ...]
    dropped: dict[str, str]

    def counts(self) -> dict[str, object]:
        """Return how many images are used, corrected and left out, by reason."""
        out = Counter(row.reason.partition(":")[0] for row in self.rows if not row.included)
        relabelled = Counter(f"{r.record.diagnosis}->{r.diagnosis}" for r in self.rows if r.relabelled)
        return {
            "images": len(self.rows),
            "included": sum(row.included for row in self.rows),
            "excluded": out.total(),
            "excluded_by_reason": dict(sorted(out.items())),
            "relabelled": relabelled.total(),
            "relabelled_by_pair": dict(sorted(relabelled.items())),
            "dropped_classes": dict(self.dropped),
        }


def plan_repair(
    records: Sequence[Record],
    hashes: Sequence[str | None],
    *,
    truths: Sequence[str | None] | None = None,
    pairs: Sequence[NearPair] = (),
    areas_px: Sequence[int] | None = None,
    keep_train: bool = False,
) -> Repair:
    """Decide what becomes of every image.

    Args:
        records: n records.
        hashes: n SHA-256 hex digests, None where unreadable.
        truths: what a reference says of each image, None where it says nothing; see `labels.truths`.
        pairs: near duplicates; they count as the same picture.
        areas_px: width x height of each image; of several copies the largest is kept, else the first.
        keep_train: of a lesion on both sides of a split keep the training side; by default the test side is kept.
    """
    plan = _Plan(records, hashes, pairs, areas_px or [0] * len(records), keep_train)
    plan.take_out_unreadable()
    plan.correct(truths or [None] * len(records))
    plan.take_out_contradictions()
    plan.keep_one_copy()
    plan.keep_one_side()
    plan.drop_classes()
    return plan.finish()


def write_repair(repair: Repair, path: Path, root: Path) -> None:
    """Write the repaired manifest; `read_dataset(path, images=root)` reads it. It appears whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    further = [c for c in MANIFEST_COLUMNS if c not in COLUMNS and any(getattr(r.record, c) for r in repair.rows)]
    rows = [
        manifest_row(row.record, root)
        | {
            "diagnosis": row.diagnosis,
            "original_diagnosis": row.record.diagnosis,
            "included": int(row.included),
            "reason": row.reason,
        }
        for row in repair.rows
    ]
    columns = (*COLUMNS, *further)
    write_table(path, columns, [{name: row[name] for name in columns} for row in rows])


class _Plan:
    """The state of a repair while its steps run."""

    def __init__(
        self,
        records: Sequence[Record],
        hashes: Sequence[str | None],
        pairs: Sequence[NearPair],
        areas_px: Sequence[int],
        keep_train: bool,
    ) -> None:
        links = [(p.first, p.second) for p in pairs]
        files = picture_groups(records, hashes)
        self.records, self.hashes, self.areas_px, self.keep_train = records, hashes, areas_px, keep_train
        self.files = files
        self.pictures = linked(len(records), links, [str(p) for p in files])
        self.lesions = linked(len(records), list(enumerate(self.pictures)), [r.lesion_id for r in records])
        self.kin = linked(len(records), links, [str(g) for g in lesion_groups(records, hashes)])
        self.diagnoses = [r.diagnosis for r in records]
        self.reasons = [""] * len(records)
        self.out = [False] * len(records)
        self.dropped: dict[str, str] = {}

    def take_out_unreadable(self) -> None:
        for i, digest in enumerate(self.hashes):
            if digest is None:
                self._exclude(i, "unreadable: the file cannot be read")

    def correct(self, truths: Sequence[str | None]) -> None:
        classes = {r.diagnosis for r in self.records}
        agreed: defaultdict[int, set[str]] = defaultdict(set)
        for i, truth in enumerate(truths):
            if truth and agrees(self.diagnoses[i], truth):
                agreed[self.files[i]].add(self.diagnoses[i])
        for i, truth in enumerate(truths):
            label = self.diagnoses[i]
            if self.out[i] or truth is None or agrees(label, truth):
                continue
            own = agreed[self.files[i]] or classes & {truth} or {c for c in classes if agrees(c, truth)}
            if len(own) == 1:
                (self.diagnoses[i],) = own
                self.reasons[i] = f"reference: {label} is replaced by {self.diagnoses[i]}"
            else:
                self._exclude(i, f"reference: it says {truth}, for which there is no single class here")

    def take_out_contradictions(self) -> None:
        for name, groups in (("the same picture stands", self.pictures), ("its lesion stands", self.lesions)):
            for group in members(groups):
                # What the first pass took out counts in the second: its lesion contradicts itself.
                told = [i for i in group if not self.out[i] or self.reasons[i].startswith("contradictory")]
                labels = sorted({self.diagnoses[i] for i in told})
                for i in told if len(labels) > 1 else ():
                    if not self.out[i]:
                        self._exclude(i, f"contradictory: {name} under {', '.join(labels)}")

    def keep_one_copy(self) -> None:
        for group in members(self.pictures):
            copies = [i for i in group if not self.out[i]]
            if len(copies) < 2:
                continue
            kept = max(copies, key=lambda i: (self._rank(i), self.areas_px[i], -i))
            for i in copies:
                if i != kept:
                    self._exclude(i, self._why_copy(i, kept))

    def keep_one_side(self) -> None:
        for group in members(self.kin):
            used = [i for i in group if not self.out[i] and self.records[i].split is not None]
            sides = {self.records[i].split for i in used}
            if len(sides) < 2:
                continue
            kept = max(used, key=self._rank)
            for i in used:
                if self.records[i].split != self.records[kept].split:
                    self._exclude(i, f"leak: {self._tie(i, kept)} is also in {self.records[kept].split}")

    def drop_classes(self) -> None:
        splits = {r.split for r in self.records}
        for code in sorted({r.diagnosis for r in self.records}):
            own = [i for i, d in enumerate(self.diagnoses) if d == code and not self.out[i]]
            if not own:
                lost = Counter(
                    self.reasons[i].partition(":")[0] if self.out[i] else "with a corrected label"
                    for i, r in enumerate(self.records)
                    if r.diagnosis == code
                )
                self.dropped[code] = f"nothing is left: {', '.join(f'{n} {why}' for why, n in lost.most_common())}"
            elif "train" in splits and not any(self.records[i].split in (None, "train") for i in own):
                self.dropped[code] = f"no training images are left; {len(own)} other images go with it"
                for i in own:
                    self._exclude(i, "class dropped: no training images of it are left")

    def finish(self) -> Repair:
        rows = zip(self.records, self.diagnoses, self.out, self.reasons, strict=True)
        return Repair(tuple(Row(r, d, not out, why) for r, d, out, why in rows), self.dropped)

    def _exclude(self, index: int, reason: str) -> None:
        self.out[index], self.reasons[index] = True, reason

    def _rank(self, index: int) -> int:
        """How much a side is worth keeping: by default the test side most, then calibrate, select and train."""
        split = self.records[index].split
        place = ROLE_NAMES.index(split) + 1 if split else 0
        return len(ROLE_NAMES) + 1 - place if self.keep_train and place else place

    def _why_copy(self, index: int, kept: int) -> str:
        same_file = self.hashes[index] == self.hashes[kept] or self.files[index] == self.files[kept]
        what = "the same picture" if same_file else "a near duplicate (inferred)"
        mine, other = self.records[index].split, self.records[kept].split
        if mine is not None and mine != other:
            return f"leak: {what} is also in {other}, {self.records[kept].image}"
        if same_file:
            return f"duplicate: {what} as {self.records[kept].image}"
        return f"near duplicate: of {self.records[kept].image} (inferred)"

    def _tie(self, index: int, kept: int) -> str:
        mine, other = self.records[index], self.records[kept]
        if mine.lesion_id is not None and mine.lesion_id == other.lesion_id:
            return f"the lesion {mine.lesion_id}"
        if mine.patient_id is not None and mine.patient_id == other.patient_id:
            return f"the patient {mine.patient_id}"
        return "a picture, lesion or patient tied to it"
