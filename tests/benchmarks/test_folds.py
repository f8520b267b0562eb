"""The folds of the protocol: one row a lesion, small files, and the simplest answers beside each method."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy.protocol import MAJORITY, PROBE, against, fuller, pairs, recalls, summary, table
from benchmarks.folds import (
    Fold,
    aligned,
    column,
    draws,
    keep_fold,
    mean_figure,
    predictions,
    read_folds,
    read_method,
    train_once,
)
from benchmarks.folds import write_fold as keep
from dermlens.bundle.bundle import MODELS_DIR

CODES = ("MEL", "NV", "VASC")


def write_run(folder: Path, errors: int, probe_errors: int, *, minutes: float = 12.0) -> Path:
    """60 lesions, two images each, the better one (`images_224`) right unless it is an error."""
    folder.mkdir(parents=True)
    rows, split = [], []
    for lesion in range(60):
        truth = lesion % 4 % 3

        def answer(count: int, truth: int = truth, lesion: int = lesion) -> int:
            return (truth + 1) % 3 if lesion % 20 < count else truth

        for source in ("images_200x150", "images_224"):
            image = f"{source}/{lesion}.jpg"
            decision = answer(errors) if source == "images_224" else (truth + 1) % 3
            probe = answer(probe_errors)
            shares = [0.8 if c == decision else 0.1 for c in range(3)] + [0.6 if c == probe else 0.2 for c in range(3)]
            rows.append([image, f"L{lesion:03}", CODES[truth], CODES[decision], CODES[probe], *shares])
            split.append([image, source, "test", CODES[truth], f"ISIC_{lesion}"])
    split += [[f"t{i}.jpg", "isic9", "train", "MEL" if i < 3 else "NV", ""] for i in range(5)]
    columns = [f"{kind}_{code}" for kind in "pq" for code in CODES]
    head = ["image", "lesion_id", "diagnosis", "decision", "probe_decision", *columns]
    for name, lines in (
        ("test_predictions.csv", [head, *rows]),
        ("split.csv", [["image", "source", "role", "diagnosis", "isic_id"], *split]),
    ):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
    (folder / "cost.json").write_text(json.dumps({"minutes": minutes, "peak_gb": 1.5}))
    (folder / "recipe.json").write_text("{}")
    return folder


def kept(folder: Path, **methods: list[tuple[int, int, int]]) -> dict[str, dict[int, Any]]:
    """Keep folds (number, errors, probe errors) of methods as small files, and read them."""
    for method, folds in methods.items():
        for number, errors, probe_errors in folds:
            run = write_run(folder / method / f"fold{number}", errors, probe_errors)
            fold = predictions(run)
            fold["lesion"] = np.array([f"{number}-{lesion}" for lesion in fold["lesion"]])
            keep(folder / "kept", method, number, fold, json.loads((run / "cost.json").read_text()))
    return read_folds(folder / "kept")


def cells(text: str, name: str) -> list[str]:
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in row.split("|")[1:-1]]


def test_a_lesion_counts_once_by_its_sharpest_image(tmp_path: Path) -> None:
    fold = predictions(write_run(tmp_path / "top" / "fold0", errors=0, probe_errors=5))
    assert len(fold["truth"]) == 60 and (fold["decision"] == fold["truth"]).all()
    assert (fold["majority"] == 0).all(), "MEL is most common among those trained on"
    assert fold["image"][3] == "images_224/3.jpg" and set(fold["source"]) == {"images_224"}
    np.testing.assert_allclose(fold["probe_probability"].sum(axis=1), 1)


def test_a_small_file_says_the_same_as_its_run_and_at_which_case_mix(tmp_path: Path) -> None:
    run = write_run(tmp_path / "top" / "fold0", errors=2, probe_errors=10)
    shutil.copytree(MODELS_DIR / "default", run / "bundle")
    keep_fold(run, "top", 0, tmp_path / "kept")
    fold, cost = read_method("top", tmp_path / "kept")[0]
    expected = predictions(run)
    assert set(fold) == set(expected) and (fold["decision"] == expected["decision"]).all()
    np.testing.assert_allclose(fold["probability"], expected["probability"], atol=1e-3)
    np.testing.assert_allclose(fold["probability"].sum(axis=1), 1, atol=1e-9)
    assert cost["shares"] == pytest.approx([1 / 8] * 8) and cost["minutes"] == 12.0 and cost["recipe"]
    with pytest.raises(SystemExit, match="No fold of 'full' is kept"):
        read_method("full", tmp_path / "kept")


def test_folds_of_different_recipes_are_not_pooled(tmp_path: Path) -> None:
    one = {"truth": np.array([0]), "lesion": np.array(["L"])}
    keep(tmp_path, "top", 3, one, {"recipe": "a"})
    keep(tmp_path, "top", 4, one, {"recipe": "b"})
    with pytest.raises(SystemExit, match="Folds 3 and 4 of 'top' were made by different recipes"):
        read_folds(tmp_path)


def test_no_lesion_stands_in_two_folds_and_rows_are_matched_by_lesion() -> None:
    one, other = {"lesion": np.array(["b", "a"])}, {"lesion": np.array(["a", "b"]), "probe": np.array([1, 2])}
    assert aligned(one, other, "probe").tolist() == [2, 1]
    assert column({0: one, 1: {"lesion": np.array(["c"])}}, "lesion").tolist() == ["b", "a", "c"]
    with pytest.raises(SystemExit, match="two folds"):
        column({0: one, 1: one}, "lesion")


def test_figures_have_intervals_over_lesions() -> None:
    truth = np.array([0] * 30 + [1] * 10)
    weights = draws(truth, resamples=50)
    assert weights.shape == (51, 40) and (weights[0] == 1).all()
    assert (weights[:, truth == 1].sum(axis=1) == 10).all(), "drawn within the class"
    found = mean_figure(np.arange(40.0), weights)
    assert found["low"] < found["value"] == 19.5 < found["high"]


def test_majority_and_probe_stand_beside_each_method(tmp_path: Path) -> None:
    found = summary(kept(tmp_path, embedded=[(0, 2, 10), (1, 4, 10)], full=[(0, 6, 10)]))
    assert list(found) == [MAJORITY, PROBE, "embedded", "full"]
    text = table(found)
    majority, probe, ours = (cells(text, name) for name in (MAJORITY, PROBE, "embedded"))
    assert majority[1] == probe[1] == ours[1] == "0, 1"
    assert majority[2].startswith("0.333") and majority[4].startswith("0.500") and majority[5] == ""
    assert probe[5] != "" and probe[6] == "", "the probe ranks too, and is not compared with itself"
    assert float(ours[6].split()[0]) > 0.2 and ours[7:] == ["12", "1.5"] and "(0." in ours[3]
    assert cells(text, "full")[3] == f"{found['full']['by_fold'][0]:.3f}"
    assert "MEL (" in recalls(found) and cells(recalls(found), "embedded")
    name, folds, balanced, largest = cells(pairs(found), "full")
    assert (name, folds) == ("full", "0") and float(balanced.split()[0]) < -0.1 and largest


def test_two_methods_that_differ_by_their_rule_alone_are_equal_by_the_largest_probability() -> None:
    rng = np.random.default_rng(0)
    probability = rng.dirichlet([1, 1, 1], 90)
    fold: Fold = {"truth": rng.integers(3, size=90), "probability": probability, "decision": probability.argmax(axis=1)}
    fold["lesion"] = np.array([f"L{number:02}" for number in range(90)])
    found = against({0: fold}, {0: {**fold, "decision": np.zeros(90, int)}})
    assert found["balanced_accuracy"]["value"] != 0
    assert found["balanced_accuracy_by_probability"] == dict.fromkeys(("value", "low", "high"), 0.0)


def test_a_row_with_more_folds_stays_and_says_so(tmp_path: Path) -> None:
    now = summary(kept(tmp_path, embedded=[(0, 2, 10)]))
    earlier = {"embedded": {**now["embedded"], "folds": [0, 1]}, "top": now["embedded"], PROBE: now[PROBE]}
    rows = fuller(now, earlier)
    assert list(rows) == [MAJORITY, PROBE, "embedded", "top"] and rows["embedded"]["earlier"]
    assert "earlier" not in rows[PROBE] and "| top (of an earlier day) |" in table(rows)


def write_answers(folder: str) -> None:
    """Finish a run, as a training does."""
    (Path(folder) / "test_predictions.csv").write_text("")


def test_a_finished_run_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def trained(call: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        call(*arguments)
        return type("Fresh", (), {"seconds": 120.0, "peak_mb": 2000.0})()

    monkeypatch.setattr("benchmarks.folds.fresh", trained)
    (tmp_path / "cost.json").write_text(json.dumps({"minutes": 3.0, "peak_gb": 2.5}))
    train_once(tmp_path, write_answers, str(tmp_path))
    train_once(tmp_path, write_answers, str(tmp_path))
    assert calls == [(str(tmp_path),)]
    assert json.loads((tmp_path / "cost.json").read_text()) == {"minutes": 5.0, "peak_gb": 2.5}, "of all tries together"
