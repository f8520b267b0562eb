"""What the commands of the pages need: a folder like a reader's, with images and one trained model."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import pictures
from dermlens.diagnoses import ISIC2019
from doc_blocks import CHEAPER, FIRST_TRAINING, PAGES, ROOT, blocks, commands, run_dermlens

CLASSES = {"eczema": (30, -20, 0), "psoriasis": (-30, 20, 0), "healthy": (0, 0, 40)}
EXAMPLES = ROOT / "examples" / "images"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end of a run how many commands of the documents no test runs, and why."""
    never = [command.reason for page in PAGES for command in commands(page) if command.when == "never"]
    never += ["it needs nginx" for page in PAGES for block in blocks(page) if block.language == "nginx"]
    counted = ", ".join(f"{count} ({reason})" for reason, count in Counter(never).most_common())
    terminalreporter.write_line(f"commands in documents that no test runs: {counted}")


def paint(folder: Path, per_class: int, seed: int) -> None:
    """Write lesion-like images of three classes that differ in colour."""
    for place, (name, colour) in enumerate(CLASSES.items()):
        for index in range(per_class):
            image = pictures.lesion(seed + 1000 * place + index).astype(np.int16) + np.array(colour, np.int16)
            pictures.save(folder / name / f"{index}.jpg", np.clip(image, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder before any page: images, and `runs/mine` from the README's own command."""
    folder = tmp_path_factory.mktemp("reader")
    paint(folder / "my_images", 12, 0)
    paint(folder / "other_images", 4, 500)
    shutil.copy(EXAMPLES / "MEL_ISIC_0000029.jpg", folder / "photo.jpg")
    (folder / "clinic.csv").write_text("".join(f"{code},{n}\n" for n, code in enumerate(ISIC2019, 1)))
    pictures.save(folder / "other.png", pictures.lesion(77))
    (folder / "folder").mkdir()
    for name in ("NV_ISIC_0000019.jpg", "BCC_ISIC_0031712.jpg"):
        shutil.copy(EXAMPLES / name, folder / "folder")
    (folder / "shards").mkdir()
    shutil.make_archive(str(folder / "shards" / "0000"), "tar", folder / "folder")
    reference = "isic_id,isic2019_diagnosis,lesion_id\nISIC_0000029,MEL,IL_1\nISIC_0000019,NV,IL_2\n"
    (folder / "isic_reference.csv").write_text(reference, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_dermlens([*FIRST_TRAINING, *CHEAPER["train"]]) == 0
    return folder


@pytest.fixture
def desk(reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the reader's folder for one page, as the working directory."""
    for path in reader.iterdir():
        if path.name == "runs":
            shutil.copytree(path, tmp_path / "runs")
        else:
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DERMLENS_MODELS", str(tmp_path / "models"))
    return tmp_path
