"""Pictures that can hardly be read are told; a good one is not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import pictures
from dermlens.audit.facts import quality_findings, read_facts
from dermlens.data.records import Record

BAD = {
    "near_uniform": np.full((160, 160, 3), 120, np.uint8),
    "blurred": cv2.GaussianBlur(pictures.lesion(3, (160, 160)), (0, 0), 6),
    "dark": (pictures.lesion(3, (160, 160)) * 0.2).astype(np.uint8),
    "overexposed": np.clip(pictures.lesion(3, (160, 160)) * 1.9, 0, 255).astype(np.uint8),
    "extreme_shape": pictures.lesion(3, (40, 300)),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_fault_is_told_by_its_name(kind: str, tmp_path: Path) -> None:
    path = pictures.save(tmp_path / "a.png", BAD[kind])
    records = [Record(path, "a.png", "NV")]
    kinds = [finding.kind for finding in quality_findings(records, read_facts(records))]
    assert kinds == [kind]


def test_a_good_picture_and_an_unreadable_one_have_no_fault_here(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"")
    pictures.save(tmp_path / "a.png", pictures.lesion(3, (160, 160)))
    records = [Record(tmp_path / name, name, "NV") for name in ("a.png", "b.png")]
    assert quality_findings(records, read_facts(records)) == []
