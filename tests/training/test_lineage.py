"""Weights of an earlier run bring along what they have seen."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dermlens.data.records import Record
from dermlens.errors import LeakageError
from dermlens.training.lineage import check_overlap, seen_by_weights
from dermlens.training.material import Material

QUIET = Console(file=io.StringIO())


def earlier_run(folder: Path) -> str:
    (folder / "bundle").mkdir()
    (folder / "model.keras").write_bytes(b"x")
    seen = {
        "train": {"content_hashes": ["aa" * 16], "lesion_ids": ["L1"], "isic_ids": []},
        "test": {"content_hashes": ["bb" * 16], "lesion_ids": [], "isic_ids": ["ISIC_0000001"]},
    }
    (folder / "bundle" / "seen.json").write_text(json.dumps(seen))
    return str(folder / "model.keras")


def material(**of_test_image: str) -> Material:
    digest = of_test_image.pop("digest", "ee" * 32)
    records = (Record(Path("a"), "a", "NV", lesion_id="L1"), Record(Path("b"), "b", "MEL", **of_test_image))  # type: ignore[arg-type]
    return Material(
        records=records,
        hashes=("aa" * 32, digest),
        roles=np.array(["train", "test"]),
        labels=np.array([1, 0]),
        codes=("MEL", "NV"),
        findings=(),
        leaky=False,
        unreadable=(),
    )


def test_everything_the_weights_met_is_known_whatever_its_role(tmp_path: Path) -> None:
    known = seen_by_weights(earlier_run(tmp_path))
    assert known == {
        "content_hashes": ["aa" * 16, "bb" * 16],
        "lesion_ids": ["L1"],
        "isic_ids": ["ISIC_0000001"],
    }
    assert seen_by_weights("pretrained") is None
    assert seen_by_weights(str(tmp_path / "other" / "model.keras")) is None


@pytest.mark.parametrize("tie", [{"digest": "bb" * 32}, {"lesion_id": "L1"}, {"isic_id": "ISIC_0000001"}])
def test_held_out_images_that_the_weights_met_are_refused_or_marked(tmp_path: Path, tie: dict[str, str]) -> None:
    known = seen_by_weights(earlier_run(tmp_path))
    assert known is not None
    with pytest.raises(LeakageError, match="already met 1 images"):
        check_overlap(material(**tie), known, allow_leakage=False, console=QUIET)
    assert check_overlap(material(**tie), known, allow_leakage=True, console=QUIET).leaky


def test_meeting_them_again_in_training_is_no_leak(tmp_path: Path) -> None:
    known = seen_by_weights(earlier_run(tmp_path))
    assert known is not None
    assert not check_overlap(material(), known, allow_leakage=False, console=QUIET).leaky
