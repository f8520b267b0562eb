"""The pixel budget: small images share it, a huge one has it alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import tiny
from dermlens import Predictor
from dermlens.data import images
from dermlens.inference.predictor import PixelBudget


def test_it_lets_small_ones_share_and_a_huge_one_in_alone() -> None:
    budget = PixelBudget(10)
    with budget.hold(4), budget.hold(6):
        pass
    with budget.hold(1000):
        pass


@pytest.mark.parametrize(("budget", "most"), [(2 * 40 * 40, 2), (10, 1)])
def test_a_predictor_decodes_no_more_at_one_time(
    budget: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads, files of 40 x 40: as many as the budget holds, and one where it holds none."""
    path = tmp_path / "large.png"
    cv2.imwrite(str(path), np.full((40, 40, 3), (0, 0, 255), np.uint8))
    decode, lock, running, seen = images._decode, threading.Lock(), [0], list[int]()

    def counted(*arguments: Any) -> Any:
        with lock:
            running[0] += 1
            seen.append(running[0])
        time.sleep(0.01)
        try:
            return decode(*arguments)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr(images, "_decode", counted)
    predictor = Predictor(tiny.write(tmp_path / "b"))
    predictor._workers, predictor._pixels = 8, PixelBudget(budget)
    bad = b"no image"
    answers = list(predictor.predict_many([path, bad] * 12))
    assert [answer.diagnosis_code for answer in answers] == ["RED", None] * 12
    assert len(seen) == 12 and max(seen) <= most
