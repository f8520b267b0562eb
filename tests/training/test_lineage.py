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
from dermlens.training.material import STARTING_WEIGHTS, Material, check_lineage

QUIET = Console(file=io.StringIO())


def earlier_run(folder: Path) -> str:
    (folder / "model.keras").write_bytes(b"x")
    seen = {
        "train": {"content_hashes": ["aa" * 16], "lesion_ids": ["L1"], "isic_ids": []},
        "test": {"content_hashes": ["bb" * 16], "lesion_ids": [], "isic_ids": ["ISIC_0000001"]},
    }
    (folder / "seen.json").write_text(json.dumps(seen))
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


def test_everything_the_weights_met_is_carried_on_whatever_its_role(tmp_path: Path) -> None:
    kept, known = check_lineage(earlier_run(tmp_path), material(), allow_leakage=False, console=QUIET)
    assert not kept.leaky, "meeting the training images again is no leak"
    assert known[STARTING_WEIGHTS] == {
        "content_hashes": ["aa" * 16, "bb" * 16],
        "lesion_ids": ["L1"],
        "isic_ids": ["ISIC_0000001"],
    }
    for public in ("lite", "imagenet", "none", "efficientnetb0_notop.h5"):
        assert check_lineage(public, material(), allow_leakage=False, console=QUIET)[1] == {}


@pytest.mark.parametrize("tie", [{"digest": "bb" * 32}, {"lesion_id": "L1"}, {"isic_id": "ISIC_0000001"}])
def test_held_out_images_that_the_weights_met_are_refused_or_marked(tmp_path: Path, tie: dict[str, str]) -> None:
    weights = earlier_run(tmp_path)
    with pytest.raises(LeakageError, match="already seen 1 images"):
        check_lineage(weights, material(**tie), allow_leakage=False, console=QUIET)
    assert check_lineage(weights, material(**tie), allow_leakage=True, console=QUIET)[0].leaky


@pytest.mark.parametrize("text", [None, "{", "[]", '{"train": 3}'])
def test_keras_weights_of_unknown_origin_are_refused_or_marked(tmp_path: Path, text: str | None) -> None:
    weights = earlier_run(tmp_path)
    (tmp_path / "seen.json").unlink()
    if text is not None:
        (tmp_path / "seen.json").write_text(text)
    with pytest.raises(LeakageError, match="no record of the images"):
        check_lineage(weights, material(), allow_leakage=False, console=QUIET)
    assert check_lineage(weights, material(), allow_leakage=True, console=QUIET)[0].leaky


def test_other_files_bring_what_lies_beside_them_or_a_warning(tmp_path: Path) -> None:
    earlier_run(tmp_path)
    _, known = check_lineage(str(tmp_path / "some.weights.h5"), material(), allow_leakage=False, console=QUIET)
    assert known[STARTING_WEIGHTS]["lesion_ids"] == ["L1"]
    (tmp_path / "seen.json").unlink()
    told = Console(file=io.StringIO(), width=200)
    kept, known = check_lineage(str(tmp_path / "some.weights.h5"), material(), allow_leakage=False, console=told)
    assert not kept.leaky and known == {}
    assert "no record of the images" in told.file.getvalue()  # type: ignore[attr-defined]
