"""What a person sees: recalls by class in the rows, the lowest of many, and the same values in TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import tensorflow as tf
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dermlens.training.watch import Watch, short_names

ROW = {
    "epoch": 1.0,
    "train_loss": 0.5,
    "select_loss": 0.4,
    "select_balanced_accuracy": 0.75,
    "select_macro_auc": 0.9,
    "images_per_s": 31.0,
}


def told(codes: tuple[str, ...], row: dict[str, float], logs: Path | None = None) -> str:
    file = io.StringIO()
    watch = Watch(Console(file=file, width=200), codes, logs)
    watch.epoch("tune", row, better=True)
    with watch.stage("tune", 40) as step:
        for _ in range(10):
            step(4, 0.25)
    return file.getvalue()


def test_a_row_holds_the_recall_of_each_class_and_marks_the_best() -> None:
    text = told(("MEL", "NV"), {**ROW, "select_recall_MEL": 0.5, "select_recall_NV": 1.0})
    head, row = text.splitlines()[1:3]
    assert "MEL" in head and "NV" in head
    assert "0.50   1.00" in row and "0.750" in row and "31" in row and row.endswith("*")


def test_of_many_classes_the_lowest_recall_is_named() -> None:
    codes = tuple(f"C{i}" for i in range(100))
    text = told(codes, {**ROW, **{f"select_recall_{c}": 0.9 for c in codes}, "select_recall_C42": 0.1})
    assert "C42 0.10" in text and max(len(line) for line in text.splitlines()) < 100


def test_a_class_absent_from_select_has_no_recall() -> None:
    assert " - " in told(("MEL", "NV"), {**ROW, "select_recall_NV": 1.0}).splitlines()[2]


def test_tensorboard_reads_the_same_values(tmp_path: Path) -> None:
    told(("MEL", "NV"), {**ROW, "select_recall_MEL": 0.5, "select_recall_NV": 1.0}, tmp_path)
    events = EventAccumulator(str(tmp_path / "tune"), size_guidance={"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    assert {"train/loss", "select/balanced_accuracy", "select_recall/MEL", "train/loss_of_step"} <= tags
    found = events.Tensors("select_recall/MEL")[0]
    assert found.step == 1 and float(tf.make_ndarray(found.tensor_proto)) == 0.5


def test_logs_that_cannot_be_written_do_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "tune").write_text("a file where a folder should be")
    text = told(("MEL", "NV"), ROW, tmp_path)
    assert "Warning: TensorBoard logs could not be written" in text


def test_a_brief_stage_is_told_in_one_line() -> None:
    file = io.StringIO()
    watch = Watch(Console(file=file, width=200), ("MEL", "NV"), brief=("head",))
    with watch.stage("head", 8) as step:
        for epoch in range(3):
            watch.epoch("head", {**ROW, "epoch": float(epoch), "select_balanced_accuracy": 0.5}, better=epoch == 1)
            step(4, 0.1)
    lines = [line for line in file.getvalue().splitlines() if "of 8" not in line]
    assert lines == ["Head on frozen features: best AUC on select 0.900 in epoch 1, with a balanced accuracy of 0.500."]


@pytest.mark.parametrize(
    ("codes", "names"),
    [
        (("MEL", "NV"), ["MEL", "NV"]),
        (("melanoma", "nevus"), ["melano", "nevus"]),
        (("Klasse 1", "Klasse 2"), ["…sse 1", "…sse 2"]),
        (("plaque, first kind", "plaque, other kind"), ["#1", "#2"]),
    ],
)
def test_classes_have_short_names_that_differ(codes: tuple[str, ...], names: list[str]) -> None:
    assert short_names(codes) == names
