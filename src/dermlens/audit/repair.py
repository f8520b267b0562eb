"""The repair of a data set: which images to use, with which label, and why not the others. No image file is changed.

In this order: unreadable files are left out; the reference's diagnosis replaces a label that contradicts it; pictures
whose labels still contradict each other are left out with all their copies; of the same picture one copy is used; of a
lesion or patient on two sides of a split one side is used; a class with nothing left to learn from is dropped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dermlens.audit.duplicates import NearPair, group_near
from dermlens.audit.labels import agrees
from dermlens.data.layouts import MANIFEST_COLUMNS
from dermlens.data.manifest import manifest_row
from dermlens.data.records import ROLE_NAMES, Record, group_connected, lesion_groups, members, picture_groups
from dermlens.data.tables import write_table

COLUMNS = ("image", "diagnosis", "original_diagnosis", "lesion_id", "split", "included", "reason")
"""Columns of every repaired manifest; more follow where the data set has them."""


@dataclass(frozen=True)
class Row:
    """The decision on one image. `reason` begins with a word and a colon, "" where nothing was changed."""

    record: Record
    diagnosis: str
    included: bool
    reason: str

    @property
    def relabelled(self) -> bool:
        return self.included and self.diagnosis != self.record.diagnosis


@dataclass(frozen=True)
class Repair:
    """A row for every image, in order, and the reason for each class that lost all its images."""

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
    """Decide for every image whether and with which label it is used.

    Args:
        records: n records.
        hashes: n SHA-256 hex digests, None where unreadable.
        truths: the reference's diagnosis of each image, None where it has none; see `labels.truths`.
        pairs: near duplicates; they count as the same picture.
        areas_px: width x height of each image; of several copies the largest is used, else the first.
        keep_train: of a lesion on both sides of a split use the training side; by default the test side is used.
    """
    plan = _Plan(records, hashes, pairs, areas_px or [0] * len(records), keep_train)
    plan.leave_out_unreadable()
    plan.correct(truths or [None] * len(records))
    plan.leave_out_contradictions()
    plan.keep_one_copy()
    plan.keep_one_side()
    plan.drop_classes()
    return plan.finish()


def write_repair(repair: Repair, path: Path, root: Path) -> None:
    """Write the repaired manifest whole or not at all; `read_dataset(path, images=root)` reads it.

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
        self.records, self.hashes, self.areas_px, self.keep_train = records, hashes, areas_px, keep_train
        self.files = picture_groups(records, hashes)
        self.pictures = group_near(self.files, pairs)
        self.lesions = group_connected([(p, r.lesion_id) for p, r in zip(self.pictures, records, strict=True)])
        self.kin = group_near(lesion_groups(records, hashes), pairs)
        self.diagnoses = [r.diagnosis for r in records]
        self.reasons = [""] * len(records)
        self.out = [False] * len(records)
        self.dropped: dict[str, str] = {}

    def leave_out_unreadable(self) -> None:
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
                self._exclude(i, f"reference: its diagnosis {truth} matches no single class here")

    def leave_out_contradictions(self) -> None:
        for name, groups in (("the same picture is", self.pictures), ("its lesion is", self.lesions)):
            for group in members(groups):
                # an image that the first pass left out still contradicts the others of its lesion in the second
                concerned = [i for i in group if not self.out[i] or self.reasons[i].startswith("contradictory")]
                labels = sorted({self.diagnoses[i] for i in concerned})
                for i in concerned if len(labels) > 1 else ():
                    if not self.out[i]:
                        self._exclude(i, f"contradictory: {name} labelled {', '.join(labels)}")

    def keep_one_copy(self) -> None:
        for group in members(self.pictures):
            copies = [i for i in group if not self.out[i]]
            if len(copies) < 2:
                continue
            best = max(copies, key=lambda i: (self._rank(i), self.areas_px[i], -i))
            for i in copies:
                if i != best:
                    self._exclude(i, self._why_copy(i, best))

    def keep_one_side(self) -> None:
        for group in members(self.kin):
            used = [i for i in group if not self.out[i] and self.records[i].split is not None]
            sides = {self.records[i].split for i in used}
            if len(sides) < 2:
                continue
            best = max(used, key=self._rank)
            for i in used:
                if self.records[i].split != self.records[best].split:
                    self._exclude(i, f"leak: {self._tie(i, best)} is also in {self.records[best].split}")

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
                self.dropped[code] = f"no training images are left; its {len(own)} other images are left out too"
                for i in own:
                    self._exclude(i, "class dropped: it has no training images left")

    def finish(self) -> Repair:
        rows = zip(self.records, self.diagnoses, self.out, self.reasons, strict=True)
        return Repair(tuple(Row(r, d, not out, why) for r, d, out, why in rows), self.dropped)

    def _exclude(self, index: int, reason: str) -> None:
        self.out[index], self.reasons[index] = True, reason

    def _rank(self, index: int) -> int:
        """Return how much a side is preferred: by default the test side most, then calibrate, select and train."""
        split = self.records[index].split
        place = ROLE_NAMES.index(split) + 1 if split else 0
        return len(ROLE_NAMES) + 1 - place if self.keep_train and place else place

    def _why_copy(self, index: int, other: int) -> str:
        same_file = self.hashes[index] == self.hashes[other] or self.files[index] == self.files[other]
        what = "the same picture" if same_file else "a near duplicate (inferred)"
        mine, theirs = self.records[index].split, self.records[other].split
        if mine is not None and mine != theirs:
            return f"leak: {what} is also in {theirs}, {self.records[other].image}"
        if same_file:
            return f"duplicate: {what} as {self.records[other].image}"
        return f"near duplicate: of {self.records[other].image} (inferred)"

    def _tie(self, index: int, other: int) -> str:
        mine, theirs = self.records[index], self.records[other]
        if mine.lesion_id is not None and mine.lesion_id == theirs.lesion_id:
            return f"the lesion {mine.lesion_id}"
        if mine.patient_id is not None and mine.patient_id == theirs.patient_id:
            return f"the patient {mine.patient_id}"
        return "a connected picture, lesion or patient"
