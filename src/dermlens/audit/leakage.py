"""Leaks: what a test shares with its training data, and what another data set shares with this one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dermlens.audit.duplicates import NearPair, group_near
from dermlens.audit.findings import Finding
from dermlens.audit.labels import compatible
from dermlens.data.records import Record, group_connected, members, picture_groups


def leak_counts(records: Sequence[Record], hashes: Sequence[str | None], pairs: Sequence[NearPair]) -> dict[str, int]:
    """Count the test images that are also in training, by how they are.

    Two images show the same picture when they share content hash or ISIC id. `test_images_leaked_any` counts hash, ISIC
    id, lesion and patient. Near duplicates are an inference and counted apart, through any number of pairs and copies:
    `test_images_near_duplicate_in_train` and `test_images_leaked_only_by_near_duplicate`.
    `test_images_only_under_another_label_with_near_copies` uses the near duplicates in training where the picture
    itself is not there.
    """
    pictures = picture_groups(records, hashes)
    near = group_near(pictures, pairs)
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
    """Return near duplicates on both sides of the split that do not share file, ISIC id or lesion: inferred leaks."""
    pictures = picture_groups(records, hashes)
    evidence = "The same picture, in different files, is on both sides of the split (inferred from how it looks)."
    findings = []
    for group in groups:
        chosen = [records[i] for i in group]
        ties = {records[i].lesion_id or f"picture {pictures[i]}" for i in group}
        if len({record.split for record in chosen} - {None}) > 1 and len(ties) > 1:
            remedy = "Move all of them to one side."
            findings.append(Finding.of("near_duplicate_across_split", chosen, evidence, remedy))
    return findings


def shared_with(
    own: Sequence[Record], other: Sequence[Record], hashes: Sequence[str | None], pairs: Sequence[NearPair]
) -> tuple[dict[str, Any], list[Finding]]:
    """Compare a data set with another one.

    Args:
        own, other: records; the other's `image` should have a prefix that distinguishes it; its `diagnosis` may be "".
        hashes: of own, then of other.
        pairs: near duplicates among own and other together, numbered in that order.

    Returns:
        Counts of this set's images that are also in the other one (the same picture, only near duplicates, and `any`
        of these or the lesion), and a finding for each shared picture or lesion.
    """
    records = [*own, *other]
    pictures = picture_groups(records, hashes)
    near = group_near(pictures, pairs)
    every = group_connected([(number, r.lesion_id) for number, r in zip(near, records, strict=True)])
    same, similar, related = (_in_both(groups, len(own)) for groups in (pictures, near, every))
    findings, disagreeing = [], 0
    for group in members(every):
        mine, theirs = [i for i in group if i < len(own)], [i for i in group if i >= len(own)]
        if not mine or not theirs:
            continue
        labels = {records[j].diagnosis for j in theirs} - {""}
        if labels:
            disagreeing += sum(not any(compatible(records[i].diagnosis, label) for label in labels) for i in mine)
        evidence = f"{len(mine)} images here and {len(theirs)} there show the same picture or lesion."
        remedy = "Leave these out when you train on one of the two sets and test on the other."
        chosen = [records[i] for i in (*mine, *theirs)]
        findings.append(Finding.of("shared_with_other_data", chosen, evidence, remedy))
    counts = {
        "images": len(other),
        "same_picture": len(same),
        "near_duplicate": len(similar - same),
        "any": len(related),
        "under_another_label": disagreeing,
    }
    return counts, findings


def _in_both(groups: Sequence[int], own: int) -> set[int]:
    """Return the indices below `own` whose group also holds one from `own` on."""
    there = set(groups[own:])
    return {i for i in range(own) if groups[i] in there}
