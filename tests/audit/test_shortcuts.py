"""A class that can be told by its file is told of; one that cannot is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dermlens.audit.facts import ImageFacts
from dermlens.audit.shortcuts import probe_shortcuts, shortcut_findings
from dermlens.bundle.quality import Quality
from dermlens.data.records import Record

QUALITY = Quality(0.6, 30, 150, 0, 0, 0.3, 0.1, 1.0)


def a_set(by_size: bool) -> tuple[list[Record], list[ImageFacts]]:
    rng = np.random.default_rng(0)
    records, facts = [], []
    for i, number in enumerate(rng.permutation(120)):
        code = "NV" if i % 2 else "MEL"
        width = (600 if code == "MEL" else 450) if by_size else int(rng.choice([600, 450]))
        records.append(Record(Path(f"ISIC_{number:07}.jpg"), f"{i}", code))
        facts.append(ImageFacts(str(i), None, "JPEG", width, 450, 9000, "q", QUALITY))
    return records, facts


def test_a_size_that_goes_with_the_class_is_a_shortcut() -> None:
    records, facts = a_set(by_size=True)
    shortcuts = probe_shortcuts(records, facts, range(120))
    assert shortcuts is not None and shortcuts.majority_accuracy == 0.5 == shortcuts.chance_balanced_accuracy
    scores = {probe.family: probe.balanced_accuracy for probe in shortcuts.probes}
    assert set(scores) == {"all", "image_size", "file_number"}  # what is the same everywhere is not tried
    assert scores["image_size"] == 1 and scores["file_number"] < 0.65
    assert ["width and height" in f.evidence for f in shortcut_findings(shortcuts)] == [False, True]


def test_without_a_shortcut_nothing_is_told() -> None:
    records, facts = a_set(by_size=False)
    assert shortcut_findings(probe_shortcuts(records, facts, range(120))) == []


def test_classes_too_small_for_folds_and_unreadable_images_are_passed_over() -> None:
    records, facts = a_set(by_size=True)
    assert probe_shortcuts(records, facts, [0] * 120) is None
    assert probe_shortcuts(records, [ImageFacts(None, "broken")] * 120, range(120)) is None
    assert shortcut_findings(None) == []
