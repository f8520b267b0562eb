"""Nothing is wired to eight lesions: a hundred classes, names that are no diagnosis of ISIC, metadata columns."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from dermlens import Predictor
from dermlens.bundle.bundle import load_bundle
from dermlens.data.manifest import read_dataset
from dermlens.training.recipe import Recipe
from dermlens.training.run import About, train

SMALL = Recipe(
    fine_tune="head",
    size_px=32,
    head_epochs=2,
    batch_size=32,
    train=0.4,
    select=0.2,
    calibrate=0.2,
    test=0.2,
)


def table(folder: Path, names: list[str], per_class: int) -> Path:
    """Write images and a CSV with columns that dermlens knows (age, sex, site) and one that it does not."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "diagnosis", "age", "sex", "site", "camera"])
        for number, name in enumerate(names):
            colour = rng.integers(40, 220, 3)
            for index in range(per_class):
                image = np.clip(colour + rng.normal(0, 15, (36, 36, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{number}_{index}.png"), image)
                writer.writerow([f"{number}_{index}.png", name, ["", "45", "n/a"][index % 3], "f", "hand", "phone"])
    return folder / "labels.csv"


def test_a_hundred_classes_are_trained_and_answered(tmp_path: Path) -> None:
    names = [f"Klasse {i}: Ärzte/Nägel?" for i in range(100)]
    data = table(tmp_path / "data", names, 6)
    train(read_dataset(data), tmp_path / "run", SMALL, About(name="any"), console=Console(file=io.StringIO()))
    bundle = load_bundle(tmp_path / "run" / "bundle")
    assert set(bundle.codes) == set(names)
    answer = Predictor(tmp_path / "run").predict(tmp_path / "data" / "1_0.png")
    assert answer.status != "error" and answer.diagnosis_code in names
    assert sum(probability for _, probability in answer.top(len(names))) > 0.99999
    assert (tmp_path / "run" / "history.png").is_file()
