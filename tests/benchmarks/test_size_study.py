"""The study of size: draws hold what they say, no lesion teaches and chooses, intervals know draws and lesions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import folds
import numpy as np
import pytest
import size_study
from size_study import ALL, Images, draw, held_out, interval, one_a_lesion, quotas, summarise

LABELS = np.array([0] * 700 + [1] * 250 + [2] * 46 + [3] * 4)
LESIONS = np.arange(1000) // 2  # two images each


@pytest.mark.parametrize("n", [20, 100, 333, 1000])
def test_quotas_follow_the_shares_and_leave_no_class_out(n: int) -> None:
    found = quotas(LABELS, n, balanced=False)
    assert sum(found.values()) == n and min(found.values()) >= 2
    assert found[0] == pytest.approx(0.7 * n, abs=4) and found[1] == pytest.approx(0.25 * n, abs=2)


def test_balanced_quotas_are_equal_as_far_as_the_images_go() -> None:
    assert quotas(LABELS, 100, balanced=True) == {0: 25, 1: 25, 2: 25, 3: 4}


def test_a_draw_takes_new_lesions_before_second_views() -> None:
    rows = draw(LABELS, LESIONS, 200, np.random.default_rng(0), balanced=False)
    assert len(rows) == len(set(rows.tolist())) == 200
    assert len(set(LESIONS[rows])) == 200
    every = draw(LABELS, LESIONS, 1000, np.random.default_rng(0), balanced=False)
    assert every.tolist() == list(range(1000))
    other = draw(LABELS, LESIONS, 200, np.random.default_rng(1), balanced=False)
    assert rows.tolist() != other.tolist()


def test_what_chooses_shares_no_lesion_with_what_teaches_and_both_have_every_class() -> None:
    held = held_out(LABELS, LESIONS, 0.2, np.random.default_rng(0))
    assert not set(LESIONS[held]) & set(LESIONS[~held])
    assert set(LABELS[held]) == set(LABELS[~held]) == {0, 1, 2, 3}
    assert held.mean() == pytest.approx(0.2, abs=0.01)


def test_the_sharpest_image_stands_for_its_lesion() -> None:
    sources = ["images_200x150", "images_224", "isic9", None]
    assert one_a_lesion([0, 1, 2, 3], np.array([7, 7, 8, 8]), sources).tolist() == [1, 2]


def test_the_interval_widens_with_the_spread_of_draws() -> None:
    rng = np.random.default_rng(0)
    steady = np.full((5, 1001), 0.6) + rng.normal(0, 0.01, (1, 1001))
    spread = steady + np.linspace(-0.1, 0.1, 5)[:, None]
    narrow, wide = interval(steady, 0), interval(spread, 0)
    assert narrow["value"] == pytest.approx(wide["value"])
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_figures_of_known_decisions() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    right, always = truth.copy(), np.zeros(8, int)
    found = summarise(truth, np.stack([right, always]), melanoma=1)
    assert found["accuracy"]["draws"] == [1, 0.5] and found["accuracy"]["value"] == 0.75
    assert found["balanced_accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["melanoma_sensitivity"]["value"] == 0.5


def test_a_study_goes_on_where_it_was_and_writes_table_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size_study, "DRAWS", {30: 2})
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    vectors = (rng.normal(0, 1, (240, 6)) + 2 * np.eye(6)[labels]).astype(np.float32)
    images, pool, test = Images(vectors, labels, np.arange(240)), np.arange(180), np.arange(180, 240)
    facts = {"codes": ["BCC", "MEL", "NV"], "truth": labels[test].tolist(), "pool": 180, "pool_lesions": 180}
    (tmp_path / "study.json").write_text(json.dumps(facts))
    size_study.run_points({"lite0": images}, pool, test, tmp_path)
    text = (tmp_path / "points.jsonl").read_text()
    first = [json.loads(line) for line in text.splitlines()]
    assert [(p["n"], p["mix"], p["draw"]) for p in first] == [
        (30, "natural", 0),
        (30, "natural", 1),
        (30, "balanced", 0),
        (30, "balanced", 1),
        (ALL, "natural", 0),
    ]
    (tmp_path / "points.jsonl").write_text("\n".join(text.splitlines()[:3]) + '\n{"half')
    size_study.run_points({"lite0": images, "lite0@320": images}, pool, test, tmp_path)
    *rest, other = size_study.points(tmp_path)
    assert (other["backbone"], other["n"], len(rest)) == ("lite0@320", ALL, 5), "another side, on all images alone"
    again = {(p["n"], p["mix"], p["draw"]): p["decided"] for p in rest}
    assert again == {(p["n"], p["mix"], p["draw"]): p["decided"] for p in first}
    rows = size_study.summary(tmp_path)["rows"]
    assert [row["images"] for row in rows] == [30, 30, 180, 180]
    assert rows[-1]["balanced_accuracy"]["value"] > 0.8
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\n".join(folds.marks("size_study")) + "\nafter\n")
    arguments = ["--runs", str(tmp_path), "--table", "--out", str(tmp_path / "out"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["size_study.py", *arguments])
    size_study.main()
    assert page.read_text().count("| 180 | as they come | 1 |") == 1 and "| lite0 | 320 | 0." in page.read_text()
    assert page.read_text().endswith("after\n")
    assert (tmp_path / "out" / "size_study.png").read_bytes().startswith(b"\x89PNG")
