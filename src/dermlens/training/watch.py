"""What a person sees of a training: a row for each epoch, a bar with loss, rate and time left, TensorBoard logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf
from rich.console import Console

from dermlens.reporting.progress import track

MOST_CLASSES = 10  # up to so many, each recall has a column; of more only the lowest is printed
_LOSS_EVERY = 10  # steps between two points of the loss in TensorBoard
_TITLES = {"head": "Head on frozen features", "tune": "Fine-tuning"}


class Watch:
    """Prints and logs a training.

    Args:
        logs: folder of the TensorBoard logs, one below it for each stage; None writes none.
        codes: the classes.
        brief: stages of which only the best epoch is printed.
    """

    def __init__(
        self, console: Console, codes: Sequence[str], logs: Path | None = None, *, brief: Sequence[str] = ()
    ) -> None:
        self._console, self._codes, self._logs, self._brief = console, tuple(codes), logs, tuple(brief)
        self._best = ""
        self._writers: dict[str, tf.summary.SummaryWriter] = {}
        self._titled: set[str] = set()
        self._step = 0

    @contextmanager
    def stage(self, name: str, images: int, *, step: int = 0) -> Iterator[Callable[[int, float], None]]:
        """Show progress over `images` still to be drawn, from `step` on.

        The yielded function takes the images and the loss of a step.
        """
        self._step = step
        with track(_TITLES.get(name, name), images, self._console) as advance:

            def after_step(done: int, loss: float) -> None:
                advance(done)
                self._step += 1
                if self._step % _LOSS_EVERY == 0:
                    self._scalars(name, {"train/loss_of_step": loss}, self._step)

            yield after_step
        self._flush()
        if name in self._brief and self._best:
            self._print(f"{_TITLES.get(name, name)}: best {self._best}.")

    def epoch(self, name: str, row: Mapping[str, float], *, better: bool) -> None:
        """Print the row of an epoch and log it; a star marks the best so far."""
        if better:
            self._best = (
                f"AUC on select {row['select_macro_auc']:.3f} in epoch {row['epoch']:.0f}, with a balanced accuracy of "
                f"{row['select_balanced_accuracy']:.3f}"
            )
        if name not in self._titled and name not in self._brief:
            self._titled.add(name)
            self._print(f"{_TITLES.get(name, name)}, scored on the select images (* best AUC so far):")
            self._print(self._columns())
        if name not in self._brief:
            self._print(self._row(row) + (" *" if better else ""))
        logged = {_tensorboard_name(key): value for key, value in row.items() if key != "epoch"}
        self._scalars(name, logged, int(row["epoch"]))

    def resumed(self, name: str, step: int, total: int, rows: Sequence[Mapping[str, float]]) -> None:
        """Say where a training resumes and show its epochs so far."""
        self._print(f"{_TITLES.get(name, name)} resumes after step {step} of {total}.")
        if name in self._brief:
            return
        self._print(self._columns())
        self._titled.add(name)
        for row in rows:
            self._print(self._row(row))

    def _columns(self) -> str:
        few = len(self._codes) <= MOST_CLASSES
        columns = [f"{name:>6}" for name in short_names(self._codes)] if few else ["  lowest recall"]
        return (
            f"{'epoch':>5} {'loss':>7} {'select loss':>11} {'bal. acc.':>9} {'AUC':>6}  recall: {' '.join(columns)}"
            f"  {'images/s':>8}"
        )

    def _row(self, row: Mapping[str, float]) -> str:
        recalls = {code: row.get(f"select_recall_{code}") for code in self._codes}
        if len(self._codes) <= MOST_CLASSES:
            cells = [f"{value:6.2f}" if value is not None else f"{'-':>6}" for value in recalls.values()]
        else:
            worst = min((value, code) for code, value in recalls.items() if value is not None)
            cells = [f"{worst[1]} {worst[0]:.2f}".rjust(15)]
        loss = f"{row['train_loss']:7.3f}" if "train_loss" in row else f"{'-':>7}"
        rate = f"{row['images_per_s']:8.0f}" if "images_per_s" in row else f"{'-':>8}"
        return (
            f"{row['epoch']:5.0f} {loss} {row['select_loss']:11.3f} {row['select_balanced_accuracy']:9.3f} "
            f"{row['select_macro_auc']:6.3f}          {' '.join(cells)}  {rate}"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def _scalars(self, name: str, values: Mapping[str, float], step: int) -> None:
        if self._logs is None:
            return
        try:
            if name not in self._writers:
                self._writers[name] = tf.summary.create_file_writer(str(self._logs / name))
            with self._writers[name].as_default():
                for key, value in values.items():
                    tf.summary.scalar(key, value, step=step)
        except (OSError, tf.errors.OpError) as error:
            self._logs = None
            self._print(f"Warning: TensorBoard logs could not be written ({error}); training continues without them.")

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()


def short_names(codes: Sequence[str]) -> list[str]:
    """Return names of at most six letters that differ: the start, else the end, else a number."""
    for names in ([c[:6] for c in codes], [c if len(c) <= 6 else f"…{c[-5:]}" for c in codes]):
        if len(set(names)) == len(codes):
            return names
    return [f"#{number}" for number in range(1, len(codes) + 1)]


def _tensorboard_name(key: str) -> str:
    """Name a value so that TensorBoard groups it: select/..., select_recall/..., train/..."""
    for group in ("select_recall", "select", "train"):
        if key.startswith(f"{group}_"):
            return f"{group}/{key[len(group) + 1 :]}"
    return f"train/{key}"
