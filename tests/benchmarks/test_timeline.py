"""Where a training's time went, read from its run folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import modes
import pytest
import timeline

START = 1_000_000.0
WRITTEN = {
    "seen.json": 60,
    "cache/frozen.npz": 120,
    "logs/head/events": 130,
    "cache/select/features.npy": 140,
    "cache/train/features.npy": 190,
    "model.keras": 490,
    "bundle/graph.xml": 540,
    "bundle/bundle.json": 570,
    "history.png": 571,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name, seconds in WRITTEN.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"training": {"minutes": 9.0}}))
        os.utime(path, (START + seconds, START + seconds))
    (tmp_path / "history.csv").write_text("epoch,seconds\n0,\n1,140\n2,150\n")
    return tmp_path


def test_each_stage_ends_with_what_it_wrote_last(run: Path) -> None:
    assert [round(seconds) for _, seconds in timeline.stages(run)] == [60, 60, 10, 60, 300, 50, 30, 1]
    assert timeline.epochs(run) == [140.0, 150.0]


def test_it_is_drawn(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timeline.draw_training(run, tmp_path / "out.svg")
    assert "52.5%" in capsys.readouterr().out and (tmp_path / "out.svg").stat().st_size > 1000


def test_the_minutes_to_a_balanced_accuracy_count_all_that_came_before(run: Path) -> None:
    (run / "recipe.json").write_text(json.dumps({"fine_tune": "top"}))
    (run / "history.csv").write_text("epoch,select_balanced_accuracy,seconds\n0,0.4,\n1,0.5,140\n2,0.6,150\n")
    assert modes.minutes_to(run, 0.4) == pytest.approx(190 / 60)
    assert modes.minutes_to(run, 0.55) == pytest.approx((190 + 290) / 60)
    assert modes.minutes_to(run, 0.7) is None


def test_the_table_of_modes_says_what_never_came_and_which_run_was_stopped_in_between(run: Path) -> None:
    (run / "recipe.json").write_text(json.dumps({"fine_tune": "top"}))
    (run / "history.csv").write_text("epoch,select_balanced_accuracy,seconds\n0,0.4,\n1,0.5,140\n2,0.6,150\n")
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    metrics = {"balanced_accuracy": figure, "macro_auc": figure}
    facts = run / "bundle" / "bundle.json"
    facts.write_text(json.dumps({"training": {"minutes": 9.0}, "metrics": metrics}))
    os.utime(facts, (START + 570, START + 570))
    (run / "state.json").write_text(json.dumps({"history": {"best_epoch": 2}}))
    run.with_suffix(".seconds").write_text("600")

    never, lines = modes.table(run.parent, [run.name], 0.7)
    reached, also = modes.table(run.parent, [run.name], 0.55)
    os.utime(run / "cache" / "frozen.npz", (START + 5000, START + 5000))
    stopped = modes.table(run.parent, [run.name], 0.55)[1]

    assert never[run.name]["minutes_to_target"] is None and lines[-1].endswith("| 2 | 10 | never |")
    assert reached[run.name]["minutes_to_target"] == pytest.approx(8) and also[-1].endswith("| 8.0 |")
    assert stopped[-1].endswith("| stopped in between |")


def test_a_copied_folder_is_refused(run: Path) -> None:
    os.utime(run / "cache" / "frozen.npz", (START + 5000, START + 5000))
    with pytest.raises(SystemExit, match="was the folder copied"):
        timeline.stages(run)
