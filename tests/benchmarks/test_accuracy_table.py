"""The table of the protocol: from run folders alone, with probe and majority, and never from what is not there."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from accuracy_table import STUDENT, against, aligned, mean_of_folds, predictions, reliability, write_table
from kept_folds import read_folds

from dermlens.bundle.bundle import load_bundle

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_BUNDLE = ROOT / "src" / "dermlens" / "models" / "default"
CODES = ("MEL", "NV", "VASC")


def write_fold(folder: Path, errors: int, probe_errors: int, *, probe_kept: bool = True, turned: bool = False) -> None:
    """60 lesions, two images each, the better one (`images_224`) told rightly unless it is an error."""
    folder.mkdir(parents=True)
    student = folder.parent.name == STUDENT
    rows, split = [], []
    for lesion in range(60):
        truth = lesion % 4 % 3

        def told(count: int, truth: int = truth, lesion: int = lesion) -> int:
            return (truth + 1) % 3 if lesion % 20 < count else truth

        for source in ("images_200x150", "images_224"):
            image, wrong = f"{source}/{lesion}.jpg", source != "images_224"
            decision = (truth + 1) % 3 if wrong else told(errors)
            probe = decision if student else told(probe_errors)
            shares = [f"{0.8 if c == decision else 0.1:.6f}" for c in range(3)]
            probe_shares = [f"{0.6 if c == probe else 0.2:.6f}" for c in range(3)] if probe_kept else []
            rows.append([image, f"L{lesion:03}", CODES[truth], CODES[decision], CODES[probe], *shares, *probe_shares])
            split.append([image, source] if student else [image, source, "test", CODES[truth]])
    if not student:
        split += [[f"t{i}.jpg", "isic9", "train", "MEL" if i < 3 else "NV"] for i in range(5)]
    columns = [f"p_{c}" for c in CODES] + [f"q_{c}" for c in CODES] * probe_kept
    head = ["image", "lesion_id", "diagnosis", "decision", "probe_decision", *columns]
    _write(folder / "test_predictions.csv", [head, *(rows[::-1] if turned else rows)])
    _write(folder / "split.csv", [["image", "source"] + ([] if student else ["role", "diagnosis"]), *split])
    (folder / "cost.json").write_text(json.dumps({"minutes": 12.0, "peak_gb": 1.5}))


def _write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def cells(lines: list[str], name: str) -> list[str]:
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {name} |")).split("|")[1:-1]]


def test_a_lesion_counts_once_by_its_sharpest_image(tmp_path: Path) -> None:
    write_fold(tmp_path / "top" / "fold0", errors=0, probe_errors=5)
    fold = predictions(tmp_path / "top" / "fold0")
    assert len(fold["truth"]) == 60 and (fold["decision"] == fold["truth"]).all()
    assert (fold["majority"] == 0).all(), "MEL is most common among those trained on"
    assert fold["image"][3] == "images_224/3.jpg" and set(fold["source"]) == {"images_224"}
    np.testing.assert_allclose(fold["probe_probability"].sum(axis=1), 1)


def test_majority_and_probe_stand_beside_each_method(tmp_path: Path) -> None:
    write_fold(tmp_path / "top" / "fold0", errors=2, probe_errors=10)
    write_fold(tmp_path / "top" / "fold1", errors=4, probe_errors=10)
    lines = write_table(tmp_path, ["top", "full"], 5)
    majority, probe, top = (cells(lines, name) for name in ("majority", "linear probe", "top"))
    assert majority[1] == probe[1] == top[1] == "0, 1"
    assert majority[2].startswith("0.333") and majority[4].startswith("0.500") and majority[5] == ""
    assert probe[7] != "" and probe[8] == "", "the probe ranks too, and is not compared with itself"
    assert float(top[8].split()[0]) > 0.2 and top[10:] == ["12", "1.5"]
    assert probe[9] != "" and majority[9] == "" and float(top[9].split()[0]) > 0.2, "accuracy, in pairs"
    assert "(SD 0." in top[3] and mean_of_folds([0.5]) == "0.500"
    recalls = [line for line in lines if line.startswith("| recall ")]
    assert len(recalls) == 1 and "MEL (" in recalls[0]
    found = json.loads((tmp_path / "accuracy.json").read_text())
    assert set(found) == {"majority", "linear probe", "top"} and found["majority"]["reliability"] is None
    for name in ("accuracy.png", "reliability.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_run_without_probe_probabilities_leaves_the_ranking_empty(tmp_path: Path) -> None:
    write_fold(tmp_path / "top" / "fold0", errors=2, probe_errors=10, probe_kept=False)
    assert cells(write_table(tmp_path, ["top"], 5), "linear probe")[5:8] == ["", "", ""]


def test_the_student_is_compared_with_the_probe_of_another_run_by_lesion(tmp_path: Path) -> None:
    write_fold(tmp_path / "top" / "fold0", errors=2, probe_errors=8)
    write_fold(tmp_path / STUDENT / "fold0", errors=8, probe_errors=0, probe_kept=False, turned=True)
    lines = write_table(tmp_path, ["top", STUDENT], 5)
    assert cells(lines, STUDENT)[8].startswith("0.000"), "it errs on the same lesions as the probe"
    alone = write_table(tmp_path, [STUDENT], 5)
    assert cells(alone, STUDENT)[8] == "" and not any(line.startswith("| linear probe") for line in alone)


def test_rows_are_matched_by_lesion_and_nothing_finished_gives_an_empty_table(tmp_path: Path) -> None:
    one, other = {"lesion": np.array(["b", "a"])}, {"lesion": np.array(["a", "b"]), "probe": np.array([1, 2])}
    assert aligned(one, other, "probe").tolist() == [2, 1]
    assert len(write_table(tmp_path, ["top"], 5)) == 3
    assert not (tmp_path / "accuracy.png").exists()


def test_reliability_is_confidence_against_share_right() -> None:
    probability = np.array([[0.9, 0.1]] * 50 + [[0.6, 0.4]] * 50)
    truth = np.array([0] * 45 + [1] * 5 + [0] * 20 + [1] * 30)
    found = reliability(truth, probability, bins=2)
    assert found["confidence"] == pytest.approx([0.6, 0.9]) and found["accuracy"] == pytest.approx([0.4, 0.9])


def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", ROOT / "scripts" / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_takes_the_protocols_table_as_it_is(tmp_path: Path) -> None:
    assert results().protocol(tmp_path / "accuracy.json") == []
    for number in range(2):
        write_fold(tmp_path / "top" / f"fold{number}", errors=2 + number, probe_errors=10)
    expected = write_table(tmp_path, ["top"], 5)
    lines = results().protocol(tmp_path / "accuracy.json")
    assert lines[-len(expected) :] == expected
    text = " ".join(lines)
    assert "`top`" in text and "`linear probe`" not in text and "(60 altogether)" in text


def test_the_final_method_is_set_against_another_on_the_folds_of_that_one(tmp_path: Path) -> None:
    write_fold(tmp_path / "top" / "fold0", errors=2, probe_errors=10)
    write_fold(tmp_path / "top" / "fold1", errors=19, probe_errors=10)
    write_fold(tmp_path / "full" / "fold0", errors=6, probe_errors=10, turned=True)
    (tmp_path / "full" / "fold0" / "cost.json").write_text(json.dumps({"minutes": 48.0, "peak_gb": 1.5}))
    write_fold(tmp_path / "head" / "fold2", errors=6, probe_errors=10)
    lines = write_table(tmp_path, ["top", "full", "head"], 5)
    start = next(place for place, line in enumerate(lines) if line.startswith("| `top` minus"))
    assert len(lines) == start + 3, "a method without a fold in common is not compared"
    name, folds, balanced, accuracy, *by_probability, minutes = (cell.strip() for cell in lines[-1].split("|")[1:-1])
    assert (name, folds, minutes) == ("`full`", "0", "0.25")
    assert float(accuracy.split()[0]) == pytest.approx(0.2) and float(balanced.split()[0]) > 0.1
    assert len(by_probability) == 2 and all(by_probability)


def test_a_method_with_more_folds_is_compared_on_those_that_both_have(tmp_path: Path) -> None:
    write_fold(tmp_path / "top" / "fold1", errors=2, probe_errors=10)
    for number, errors in ((0, 19), (1, 6)):
        write_fold(tmp_path / "full" / f"fold{number}", errors=errors, probe_errors=10)
    *_, row = write_table(tmp_path, ["top", "full"], 5)
    name, folds, _, accuracy, *_ = (cell.strip() for cell in row.split("|")[1:-1])
    assert (name, folds) == ("`full`", "1") and float(accuracy.split()[0]) == pytest.approx(0.2)


def test_two_methods_that_differ_by_their_rule_alone_are_equal_by_the_largest_probability() -> None:
    rng = np.random.default_rng(0)
    probability = rng.dirichlet([1, 1, 1], 90)
    fold = {"truth": rng.integers(3, size=90), "probability": probability, "decision": probability.argmax(axis=1)}
    fold["lesion"] = np.array([f"L{number:02}" for number in range(90)])
    other = {**fold, "decision": np.zeros(90, int)}
    found = against({0: fold}, {0: other})
    assert found["accuracy"]["value"] != 0
    assert (
        found["accuracy_by_probability"]
        == found["balanced_accuracy_by_probability"]
        == dict.fromkeys(("value", "low", "high"), 0.0)
    )


def test_kept_folds_make_the_same_table_without_their_run_folders(tmp_path: Path) -> None:
    keep = tmp_path / "folds"
    for number in range(2):
        write_fold(tmp_path / "a" / "top" / f"fold{number}", errors=2 + number, probe_errors=10)
    write_fold(tmp_path / "a" / STUDENT / "fold0", errors=8, probe_errors=0, probe_kept=False)
    expected = write_table(tmp_path / "a", ["top", STUDENT], 5, keep)
    assert sorted(path.name for path in keep.iterdir()) == ["student_fold0.npz", "top_fold0.npz", "top_fold1.npz"]
    assert write_table(tmp_path / "b", ["top", STUDENT], 5, keep) == expected


def test_a_kept_fold_says_by_which_rule_it_names_a_class(tmp_path: Path) -> None:
    keep = tmp_path / "folds"
    for number in range(3):
        write_fold(tmp_path / "a" / "top" / f"fold{number}", errors=2, probe_errors=10)
    shutil.copytree(DEFAULT_BUNDLE, tmp_path / "a" / "top" / "fold0" / "bundle")
    (tmp_path / "a" / "top" / "fold1" / "bundle").mkdir()
    write_table(tmp_path / "a", ["top"], 5, keep)
    rules = {number: cost["rule"] for number, (_, cost) in read_folds(keep)["top"].items()}
    bundle = load_bundle(DEFAULT_BUNDLE)
    assert rules[0] == {
        **bundle.decision_rule.as_dict(),
        "prior": list(bundle.calibration.prior),
        "bias": list(bundle.calibration.bias),
    }
    assert rules[1] == rules[2] == {}, "no bundle, or one that cannot be read"


def test_an_earlier_tables_rows_stay_where_they_have_more_folds(tmp_path: Path) -> None:
    for number in range(3):
        write_fold(tmp_path / "a" / "top" / f"fold{number}", errors=2, probe_errors=10)
    write_table(tmp_path / "a", ["top"], 5)
    write_fold(tmp_path / "b" / "top" / "fold0", errors=5, probe_errors=10)
    write_fold(tmp_path / "b" / "full" / "fold0", errors=6, probe_errors=10)
    lines = write_table(tmp_path / "b", ["top", "full"], 5, onto=tmp_path / "a" / "accuracy.json")
    names = [f"{name} (of an earlier table)" for name in ("majority", "linear probe", "top")]
    assert [cells(lines, name)[1] for name in (*names, "full")] == ["0, 1, 2"] * 3 + ["0"]
    assert [line.split("|")[1].strip() for line in lines[2:6]] == [*names, "full"]


def test_folds_of_different_recipes_are_not_pooled(tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / "a" / "top" / f"fold{number}"
        write_fold(folder, errors=2, probe_errors=10)
        (folder / "recipe.json").write_text(json.dumps({"epochs": 8 + number}))
    with pytest.raises(SystemExit, match="Folds 0 and 1 of 'top'"):
        write_table(tmp_path / "a", ["top"], 5)
