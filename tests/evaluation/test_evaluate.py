"""evaluate: only unseen lesions count, nothing disappears, the files say what was done."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import HASH_CHARS, load_bundle
from dermlens.bundle.case_mix import make_mix
from dermlens.data.images import content_hash
from dermlens.data.manifest import read_dataset
from dermlens.diagnoses import map_label
from dermlens.errors import DataError, StorageError
from dermlens.evaluation.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("no_plots")


def paint(folder: Path, per_class: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for code in tiny.CODES:
        (folder / code).mkdir(parents=True)
        for index in range(per_class):
            image = np.clip(tiny.colour(code) + rng.normal(0, 9, (40, 40, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / code / f"{index}.png"), image[:, :, ::-1])
    return folder


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_seen_images_are_set_aside_and_every_input_has_a_row(tmp_path: Path) -> None:
    data = paint(tmp_path / "data")
    (data / "RED" / "broken.png").write_bytes(b"\x89PNG broken")
    known = content_hash((data / "RED" / "0.png").read_bytes())[:HASH_CHARS]
    seen = {"train": {"content_hashes": [known], "lesion_ids": [], "isic_ids": []}}
    predictor = Predictor(tiny.write(tmp_path / "b", seen=seen))
    messages = io.StringIO()
    failed = evaluate(
        predictor,
        read_dataset(data),
        tmp_path / "out",
        split=None,
        seed=0,
        console=Console(file=messages, width=200),
    )
    assert failed
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 37
    by_status = {s: [r["image"] for r in rows if r["status"] == s] for s in ("scored", "set_aside", "error")}
    assert by_status["set_aside"] == ["RED/0.png"] and by_status["error"] == ["RED/broken.png"]
    assert "1 left out because the model has seen them (1 same image)" in messages.getvalue()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["n"] == 35 == len(by_status["scored"])
    assert metrics["balanced_accuracy"]["value"] == 1.0
    assert set(metrics["per_class"]) == set(tiny.CODES)
    assert metrics["counts"]["set_aside_as_seen"] == 1


def test_a_repaired_manifest_is_followed_and_named(tmp_path: Path) -> None:
    data, manifest, messages = paint(tmp_path / "data"), tmp_path / "repaired.csv", io.StringIO()
    rows = [
        f"{code}/{i}.png,{code},{int(i > 1)},{'' if i > 1 else 'leak: x'}" for code in tiny.CODES for i in range(12)
    ]
    manifest.write_text("\n".join(["image,diagnosis,included,reason", *rows]) + "\n")
    evaluate(
        Predictor(tiny.write(tmp_path / "b")),
        read_dataset(manifest, images=data),
        tmp_path / "out",
        split=None,
        seed=0,
        console=Console(file=messages, width=200),
    )
    assert "6 images are marked as not included in repaired.csv (6 leak)." in messages.getvalue()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["n"] == 30 and metrics["manifest_sha256"] == content_hash(manifest.read_bytes())


def test_a_class_that_the_model_does_not_have_is_counted_not_scored(tmp_path: Path) -> None:
    data = paint(tmp_path / "data")
    (data / "RED").rename(data / "violet")
    predictor = Predictor(tiny.write(tmp_path / "b"))
    evaluate(
        predictor,
        read_dataset(data),
        tmp_path / "out",
        split=None,
        seed=0,
        console=Console(file=io.StringIO()),
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["counts"]["class_not_in_model"] == {"violet": 12}
    assert metrics["n"] == 24


def test_nothing_left_to_score_is_one_clear_error(tmp_path: Path) -> None:
    data = paint(tmp_path / "data")
    hashes = [content_hash(p.read_bytes())[:HASH_CHARS] for p in data.rglob("*.png")]
    seen = {"calibrate": {"content_hashes": hashes, "lesion_ids": [], "isic_ids": []}}
    predictor = Predictor(tiny.write(tmp_path / "b", seen=seen))
    with pytest.raises(DataError, match="Nothing is left to score") as caught:
        evaluate(
            predictor,
            read_dataset(data),
            tmp_path / "out",
            split=None,
            seed=0,
            console=Console(file=io.StringIO()),
        )
    assert caught.value.code == "nothing_to_score"
    assert len(rows_of(tmp_path / "out")) == 36, "the reasons are written all the same"


def test_an_unknown_split_names_those_that_exist(tmp_path: Path) -> None:
    predictor = Predictor(tiny.write(tmp_path / "b"))
    with pytest.raises(DataError, match="No images in split 'test'"):
        evaluate(
            predictor,
            read_dataset(paint(tmp_path / "d")),
            tmp_path / "o",
            split="test",
            seed=0,
            console=Console(),
        )


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    predictor = Predictor(tiny.write(tmp_path / "b"))
    with pytest.raises(StorageError, match="could not be written"):
        evaluate(
            predictor,
            read_dataset(paint(tmp_path / "d")),
            tmp_path / "file" / "out",
            split=None,
            seed=0,
            console=Console(file=io.StringIO()),
        )


def test_another_case_mix_is_said_and_followed(tmp_path: Path) -> None:
    bundle = load_bundle(tiny.write(tmp_path / "b"))
    mix = make_mix("clinic.csv", {"RED": 1, "GREEN": 1, "BLUE": 8}, bundle.codes)
    predictor, data = Predictor(bundle.folder, case_mix=mix), read_dataset(paint(tmp_path / "data"))
    evaluate(predictor, data, tmp_path / "out", split=None, seed=0, console=Console(file=io.StringIO()))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["case_mix"] == metrics["calibration"]["case_mix"] == "clinic.csv"
    assert set(metrics["calibration"]["at"]) == {"equal", "training", "clinic.csv"}
    rows = rows_of(tmp_path / "out")
    for row in rows:
        shares = {code: float(row[f"p_{code}"]) for code in bundle.codes}
        assert row["decision"] == max(shares, key=shares.__getitem__), "the first of the order at that mix"
    assert {row["advice"] for row in rows} == {"not_assessed"}


def test_labels_join_their_parent_only_for_a_model_of_isic_classes() -> None:
    assert map_label("SK", ("BKL", "MEL", "NV")) == "BKL"
    assert map_label("SK", ("SK", "MEL")) == "SK"
    assert map_label("SK", ("BKL", "a rash")) is None
    assert map_label("AKIEC", ("AK", "SCC")) is None
