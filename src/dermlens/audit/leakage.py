"""What a test shares with its training data: counted image by image, and what another data set shares with this one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dermlens.audit.duplicates import NearPair, linked
from dermlens.audit.findings import Finding
from dermlens.audit.labels import compatible
from dermlens.data.records import Record, members, picture_groups


def leak_counts(records: Sequence[Record], hashes: Sequence[str | None], pairs: Sequence[NearPair]) -> dict[str, int]:
    """Count the test images that training knows, by the way it knows them.

    A picture is the same where content hash or ISIC id is. `test_images_leaked_any` rests on hash, ISIC id, lesion
    and patient; what is inferred from near duplicates is counted apart, as `test_images_near_duplicate_in_train`, for
    other pictures linked through any number of pairs and copies, and `test_images_leaked_only_by_near_duplicate`.
    `test_images_only_under_another_label_with_near_copies` takes near duplicates for the picture where the picture
    itself is not in training.
    """
    pictures = picture_groups(records, hashes)
    near = linked(len(records), [(p.first, p.second) for p in pairs], [str(p) for p in pictures])
    test = [i for i, r in enumerate(records) if r.split == "test"]
    train = [i for i, r in enumerate(records) if r.split == "train"]
    labels_of: defaultdict[int, set[str]] = defaultdict(set)
    near_labels_of: defaultdict[int, set[str]] = defaultdict(set)
    near_pictures_of: defaultdict[int, set[int]] = defaultdict(set)
    pictures_of: defaultdict[str, set[int]] = defaultdict(set)
    for i in train:
        labels_of[pictures[i]].add(records[i].diagnosis)
        near_labels_of[near[i]].add(records[i].diagnosis)
        near_pictures_of[near[i]].add(pictures[i])
        lesion = records[i].lesion_id
        if lesion is not None:
            pictures_of[lesion].add(pictures[i])
    patients = {records[i].patient_id for i in train} - {None}
    same = {i for i in test if pictures[i] in labels_of}
    another = {i for i in test if labels_of.get(pictures[i], set()) - {records[i].diagnosis}}
    never_right = {i for i in another if records[i].diagnosis not in labels_of[pictures[i]]}
    any_image = {i for i in test if (records[i].lesion_id or "") in pictures_of}
    other_image = {i for i in any_image if pictures_of[records[i].lesion_id or ""] - {pictures[i]}}
    patient = {i for i in test if records[i].patient_id in patients}
    copied = {i for i in test if near_pictures_of.get(near[i], set()) - {pictures[i]}}
    near_wrong = {i for i in copied - same if records[i].diagnosis not in near_labels_of[near[i]]}
    leaked = same | any_image | patient
    return {
        "test_images": len(test),
        "test_images_same_picture_in_train": len(same),
        "test_images_under_another_label_in_train": len(another),
        "test_images_only_under_another_label_in_train": len(never_right),
        "test_images_only_under_another_label_with_near_copies": len(never_right | near_wrong),
        "test_images_with_lesion_in_train_other_image": len(other_image),
        "test_images_with_lesion_in_train_any_image": len(any_image),
        "test_images_with_patient_in_train": len(patient),
        "test_images_near_duplicate_in_train": len(copied),
        "test_images_leaked_only_by_near_duplicate": len(copied - leaked),
        "test_images_leaked_any": len(leaked),
    }


def inferred_leaks(
    records: Sequence[Record], groups: Sequence[Sequence[int]], hashes: Sequence[str | None]
) -> list[Finding]:
    """Return near duplicates that cross the split and are not the same file, ISIC id or lesion: leaks by inference."""
    pictures = picture_groups(records, hashes)
    findings = []
    for group in groups:
        ties = [records[i].lesion_id or f"picture {pictures[i]}" for i in group]
        sides = {records[i].split for i in group} - {None}
        if len(sides) > 1 and len(set(ties)) > 1:
            findings.append(
                Finding(
                    "near_duplicate_across_split",
                    "error",
                    tuple(records[i].image for i in group),
                    "The same picture, in different files, stands on both sides of the split; inferred from how it "
                    "looks.",
                    "Move all of them to one side.",
                    tuple(records[i].diagnosis for i in group),
                    tuple(records[i].split or "" for i in group),
                )
            )
    return findings


def shared_with(
    own: Sequence[Record],
    other: Sequence[Record],
    hashes: Sequence[str | None],
    pairs: Sequence[NearPair],
) -> tuple[dict[str, Any], list[Finding]]:
    """Compare a data set with another one.

    Args:
        own, other: records; the other's `image` should carry a prefix that tells them apart.
        hashes: of own, then of other.
        pairs: near duplicates among own and other together, numbered in that order.

    Returns:
        Counts of this set's images that the other one knows, and a finding for each picture or lesion shared: the
        same picture, near duplicates that are not, and `any` of these or the lesion.
    """
    records = [*own, *other]
    pictures = picture_groups(records, hashes)
    near = linked(len(records), [(p.first, p.second) for p in pairs], [f"picture {p}" for p in pictures])
    lesions = [r.lesion_id or f"picture {p}" for r, p in zip(records, pictures, strict=True)]
    every = linked(len(records), list(enumerate(near)), lesions)
    known = {
        "same_picture": _in_both(pictures, len(own)),
        "near_duplicate": _in_both(near, len(own)),
        "any": _in_both(every, len(own)),
    }
    findings = []
    disagreeing = 0
    for group in members(every):
        mine, theirs = [i for i in group if i < len(own)], [i for i in group if i >= len(own)]
        if not mine or not theirs:
            continue
        disagreeing += sum(
            not any(compatible(records[i].diagnosis, records[j].diagnosis) for j in theirs) for i in mine
        )
        chosen = [*mine, *theirs]
        evidence = f"{len(mine)} images here and {len(theirs)} there show one picture or lesion."
        remedy = "Never train on one of the two sets and score on the other without leaving these out."
        images, labels = tuple(records[i].image for i in chosen), tuple(records[i].diagnosis for i in chosen)
        findings.append(Finding("shared_with_other_data", "warning", images, evidence, remedy, labels))
    counts = {
        "images": len(other),
        "same_picture": len(known["same_picture"]),
        "near_duplicate": len(known["near_duplicate"] - known["same_picture"]),
        "any": len(known["any"]),
        "under_another_label": disagreeing,
    }
    return counts, findings


def _in_both(groups: Sequence[int], own: int) -> set[int]:
    """Return the indices below `own` whose group also holds one from `own` on."""
    there = set(groups[own:])
    return {i for i in range(own) if groups[i] in there}
