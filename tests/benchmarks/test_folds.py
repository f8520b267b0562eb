"""What the benchmarks of the protocol share: a fold's test images, outputs that are kept, and tables in a document."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from accuracy_table import predictions
from folds import answers_of, column, draws, finished, marks, mean_figure, mean_logits, records_of, share_figure, write
from rich.console import Console

import tiny
from dermlens.bundle.bundle import load_bundle
from dermlens.bundle.decision import decide, probabilities
from dermlens.data.images import load_image
from dermlens.inference.predictor import run_views
from dermlens.inference.runtime import Runtime

CONSOLE = Console(quiet=True)


@pytest.fixture
def fold(tmp_path: Path) -> tuple[Path, Path]:
    """A finished run folder of the tiny network and its data: 20 lesions, each with a small and a sharp image."""
    folder, data = tmp_path / "runs" / "top" / "fold0", tmp_path / "data"
    bundle = load_bundle(tiny.write(folder / "bundle"))
    runtime, rng = Runtime(bundle.graph_path), np.random.default_rng(0)
    rows, split = [], []
    for lesion in range(20):
        code = tiny.CODES[lesion % 3]
        for source in ("images_200x150", "isic9" if lesion % 5 == 0 else "images_224"):
            image, pixels = f"{source}/{lesion}.png", tiny.colour(code, (48, 64))
            pixels[:24, :20] = rng.integers(0, 255, 3)
            (data / image).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(data / image), pixels[:, :, ::-1])
            aspect = 4 / 3 if source == "isic9" else None
            seen = load_image(data / image, bundle.input_spec, frame_aspect=aspect)
            p = probabilities(runtime.run(seen[None]).logits, bundle.calibration)
            told = tiny.CODES[decide(p, bundle.calibration, bundle.decision_rule)[0]]
            rows.append([image, f"L{lesion}", code, told, code, *(f"{share:.6f}" for share in p[0])])
            split.append([image, source, "test", code])
    head = ["image", "lesion_id", "diagnosis", "decision", "probe_decision", *(f"p_{code}" for code in tiny.CODES)]
    for name, table in (
        ("test_predictions.csv", [head, *rows]),
        ("split.csv", [["image", "source", "role", "diagnosis"], *split]),
    ):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(table)
    return folder, data


def test_the_test_images_are_the_protocols_and_framed_as_in_the_training(fold: tuple[Path, Path]) -> None:
    folder, data = fold
    table = predictions(folder)
    records = records_of(table, data)
    assert [record.image for record in records] == table["image"].tolist() and len(records) == 20
    assert {record.source for record in records} == {"isic9", "images_224"}
    assert {r.frame_aspect for r in records if r.source == "isic9"} == {4 / 3}
    assert {r.frame_aspect for r in records if r.source != "isic9"} == {None}


def test_outputs_are_those_of_the_run_and_kept(fold: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = fold
    first = answers_of(folder, data, tmp_path / "keep", 1, CONSOLE)
    assert first.logits.shape == (1, 20, 3) and first.embedding.shape == (20, 3)
    np.testing.assert_allclose(first.probability(), first.table["probability"], atol=1e-5)
    again = answers_of(folder, None, tmp_path / "keep", 1, CONSOLE)
    np.testing.assert_array_equal(again.logits, first.logits)
    with pytest.raises(SystemExit, match="data folder"):
        answers_of(folder, None, tmp_path / "keep", 8, CONSOLE)
    every = answers_of(folder, data, tmp_path / "keep", 8, CONSOLE)
    np.testing.assert_array_equal(every.logits[0], first.logits[0])
    np.testing.assert_array_equal(answers_of(folder, None, tmp_path / "keep", 4, CONSOLE).logits, every.logits)


def test_the_mean_of_kept_views_is_what_predict_does(fold: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = fold
    part = answers_of(folder, data, tmp_path / "keep", 8, CONSOLE)
    records = records_of(part.table, data)
    spec = part.bundle.input_spec
    pixels = np.stack([load_image(r.path, spec, frame_aspect=r.frame_aspect) for r in records])
    runtime = Runtime(part.bundle.graph_path)
    for views in (1, 2, 8):
        expected = run_views(runtime.run, pixels, views).logits
        np.testing.assert_allclose(mean_logits(part.logits[:views]), expected, atol=1e-5)


def test_another_network_or_other_images_are_noticed(fold: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = fold
    answers_of(folder, data, tmp_path / "keep", 1, CONSOLE)
    tiny.write(folder / "other", name="other")
    (folder / "bundle").rename(folder / "first")
    (folder / "other").rename(folder / "bundle")
    with pytest.raises(SystemExit, match="data folder"):
        answers_of(folder, None, tmp_path / "keep", 1, CONSOLE)
    for path in data.rglob("*.png"):
        cv2.imwrite(str(path), tiny.colour("RED", (48, 64))[:, :, ::-1])
    with pytest.raises(SystemExit, match="decisions"):
        answers_of(folder, data, tmp_path / "keep", 1, CONSOLE)


def test_only_finished_folds_count_and_no_lesion_stands_in_two(fold: tuple[Path, Path]) -> None:
    folder, _ = fold
    (folder.parent / "fold1").mkdir()
    assert finished(folder.parents[1], "top") == {0: folder}
    with pytest.raises(SystemExit, match="No finished fold"):
        finished(folder.parents[1], "full")
    one, other = {"lesion": np.array(["a", "b"])}, {"lesion": np.array(["c"])}
    assert column({0: one, 1: other}, "lesion").tolist() == ["a", "b", "c"]
    with pytest.raises(SystemExit, match="two folds"):
        column({0: one, 1: one}, "lesion")


def test_figures_have_intervals_over_lesions() -> None:
    truth = np.array([0] * 30 + [1] * 10)
    weights = draws(truth, resamples=50)
    assert weights.shape == (51, 40) and (weights[0] == 1).all()
    assert (weights[:, truth == 1].sum(axis=1) == 10).all(), "drawn within the class"
    found = mean_figure(np.arange(40.0), weights)
    assert found["low"] < found["value"] == 19.5 < found["high"]
    assert share_figure(np.ones(20)) == {"value": 1.0, "low": pytest.approx(0.839, abs=1e-3), "high": 1.0}
    assert share_figure(np.ones(0))["value"] is None


def test_tables_go_between_their_marks_and_nowhere_else(tmp_path: Path) -> None:
    start, end = marks("pooled")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    options = argparse.Namespace(out=tmp_path / "out", page=page)
    write(options, "pooled", {"a": 1}, ["| new |"], b"png")
    assert page.read_text() == f"before\n{start}\n| new |\n{end}\nafter\n"
    assert json.loads((tmp_path / "out" / "pooled.json").read_text()) == {"a": 1}
    assert (tmp_path / "pooled.png").read_bytes() == b"png"
    with pytest.raises(SystemExit, match="no place"):
        write(options, "limits", {}, [], b"")
