"""What a training is made of: audited first, refused when it leaks, with the repair offered in one line."""

from __future__ import annotations

import io
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import pictures
from dermlens.audit.repair import write_repair
from dermlens.audit.run import run_audit
from dermlens.data.images import content_hash
from dermlens.data.manifest import manifest_sha256, read_dataset
from dermlens.errors import LeakageError
from dermlens.training.material import prepare
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
