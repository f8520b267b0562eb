"""`dermlens tune` hands on how the data was read."""

from __future__ import annotations

from pathlib import Path

import pytest

from dermlens.cli.train import Task
from dermlens.cli.tune import reading_options


@pytest.mark.parametrize(
    ("task", "frame_aspect", "words"),
    [("as_is", None, ""), ("isic2019", 1.333, "--task isic2019 --frame-aspect 1.333")],
)
def test_only_what_was_given_is_named(task: Task, frame_aspect: float | None, words: str) -> None:
    assert " ".join(reading_options(None, None, task, frame_aspect)) == words


def test_folders_are_named_as_they_were_given() -> None:
    found = reading_options(Path("pictures"), Path("who.csv"), "as_is", None)
    assert found == ["--images", "pictures", "--reference", "who.csv"]
