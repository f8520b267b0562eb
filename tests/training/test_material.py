"""What a training is made of: audited first, refused when it leaks, with what earlier weights have seen."""

from __future__ import annotations

import io
import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import pictures
from dermlens.audit.repair import write_repair
from dermlens.audit.run import run_audit
from dermlens.data.images import content_hash
from dermlens.data.manifest import manifest_sha256, read_dataset
from dermlens.data.records import Record
from dermlens.errors import LeakageError
from dermlens.training.material import STARTING_WEIGHTS, Material, check_lineage, prepare
from dermlens.training.recipe import Recipe

RECIPE = Recipe(train=0.4, select=0.2, calibrate=0.2, test=0.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.spoiled_set(tmp_path_factory.mktemp("spoiled") / "set")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


def told(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_leaking_set_is_refused_with_the_command_that_repairs_it(data: Path) -> None:
    console = quiet()
    with pytest.raises(LeakageError, match=r"repaired\.csv"):
        prepare(read_dataset(data), RECIPE, allow_leakage=False, console=console)
    assert f"\nRepair it: dermlens audit {shlex.quote(str(data))} --repair --manifest repaired.csv\n" in told(console)


def test_contradictions_alone_are_told_with_the_same_command(data: Path, tmp_path: Path) -> None:
    dataset = read_dataset(data)
    train = tuple(r for r in dataset.records if r.split == "train" and "leak" not in r.image)
    console = quiet()
    prepare(replace(dataset, records=train), RECIPE, allow_leakage=False, console=console)
    assert told(console).count("Repair it: ") == 1


def test_a_repaired_manifest_trains_says_what_it_leaves_out_and_has_a_fingerprint(data: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "repaired.csv"
    found = run_audit(read_dataset(data), console=quiet())
    write_repair(found.repair(), manifest, data)
    dataset, console = read_dataset(manifest, images=data), quiet()
    material = prepare(dataset, RECIPE, allow_leakage=False, console=console)
    words = " ".join(told(console).split())
    assert "5 images are marked as not included in repaired.csv (2 contradictory, " in words
    assert "1 unreadable" in words and "1 leak" in words and "Repair it" not in words
    assert len(material.records) == 53 and not material.leaky
    assert manifest_sha256(dataset) == content_hash(manifest.read_bytes())
    assert manifest_sha256(read_dataset(data)) is None


QUIET = Console(file=io.StringIO())


def earlier_run(folder: Path) -> str:
    (folder / "model.keras").write_bytes(b"x")
    seen = {
        "train": {"content_hashes": ["aa" * 16], "lesion_ids": ["L1"], "isic_ids": []},
        "test": {"content_hashes": ["bb" * 16], "lesion_ids": [], "isic_ids": ["ISIC_0000001"]},
    }
    (folder / "seen.json").write_text(json.dumps(seen))
    return str(folder / "model.keras")


def two_images(**of_test_image: str) -> Material:
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
    kept, known = check_lineage(earlier_run(tmp_path), two_images(), allow_leakage=False, console=QUIET)
    assert not kept.leaky, "meeting the training images again is no leak"
    assert known[STARTING_WEIGHTS] == {
        "content_hashes": ["aa" * 16, "bb" * 16],
        "lesion_ids": ["L1"],
        "isic_ids": ["ISIC_0000001"],
    }
    for public in ("lite", "imagenet", "none", "efficientnetb0_notop.h5"):
        assert check_lineage(public, two_images(), allow_leakage=False, console=QUIET)[1] == {}


@pytest.mark.parametrize("tie", [{"digest": "bb" * 32}, {"lesion_id": "L1"}, {"isic_id": "ISIC_0000001"}])
def test_test_images_that_the_weights_met_are_refused_or_marked(tmp_path: Path, tie: dict[str, str]) -> None:
    weights = earlier_run(tmp_path)
    with pytest.raises(LeakageError, match="already seen 1 images"):
        check_lineage(weights, two_images(**tie), allow_leakage=False, console=QUIET)
    assert check_lineage(weights, two_images(**tie), allow_leakage=True, console=QUIET)[0].leaky


@pytest.mark.parametrize("text", [None, "{", "[]", '{"train": 3}'])
def test_keras_weights_of_unknown_origin_are_refused_or_marked(tmp_path: Path, text: str | None) -> None:
    weights = earlier_run(tmp_path)
    (tmp_path / "seen.json").unlink()
    if text is not None:
        (tmp_path / "seen.json").write_text(text)
    with pytest.raises(LeakageError, match="no record of the images"):
        check_lineage(weights, two_images(), allow_leakage=False, console=QUIET)
    assert check_lineage(weights, two_images(), allow_leakage=True, console=QUIET)[0].leaky


def test_other_files_bring_what_lies_beside_them_or_a_warning(tmp_path: Path) -> None:
    earlier_run(tmp_path)
    _, known = check_lineage(str(tmp_path / "some.weights.h5"), two_images(), allow_leakage=False, console=QUIET)
    assert known[STARTING_WEIGHTS]["lesion_ids"] == ["L1"]
    (tmp_path / "seen.json").unlink()
    told = Console(file=io.StringIO(), width=200)
    kept, known = check_lineage(str(tmp_path / "some.weights.h5"), two_images(), allow_leakage=False, console=told)
    assert not kept.leaky and known == {}
    assert "no record of the images" in told.file.getvalue()  # type: ignore[attr-defined]
