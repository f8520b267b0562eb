"""Several trainings from one start: the mean of their weights where that is a good network, else the best of them.

Trainings that begin with the same weights and differ in what they draw may end in one valley of the loss, where the
mean of their weights is nearly as good as the mean of their answers and costs no more than one network ("model soups":
Wortsman et al. 2022, arXiv 2203.05482). Batch normalisation has to be frozen for that, or its statistics would not fit
the mean; and the rate must not be so large that they leave the valley (`benchmarks/members.py`). Each finished training
is kept in the run folder, so that a run which is stopped goes on with the next one.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import keras
import numpy as np

from dermlens.errors import StorageError
from dermlens.training.checkpoint import Saved, assign, values_of
from dermlens.training.fit import History, Stage

START = "start"

Member = tuple[list[np.ndarray], History]
Fit = Callable[[Stage, Saved | None], History]
"""Trains the model of a run through one stage, from a state of this stage or from the weights it has."""


@dataclass(frozen=True)
class Kept:
    """The start and the finished members of one run, a file each; files of another run are not read."""

    folder: Path
    key: str

    def read(self, name: str) -> Member | None:
        """Return weights and history, or None where the file is not there, not whole, or of another run."""
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
                head = json.loads(str(file["head"]))
                if head["key"] != self.key:
                    return None
                return [file[each] for each in sorted(set(file.files) - {"head"})], History(**head["history"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, name: str, weights: Sequence[np.ndarray], history: History) -> None:
        """Keep weights and history; a kill or a full disk leaves no half file.

        Raises:
            StorageError: no space or no permission.
        """
        head = json.dumps({"key": self.key, "history": asdict(history)})
        temporary = self.folder / f".{name}.new"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                named = {f"{place:05d}": array for place, array in enumerate(weights)}
                np.savez(file, head=np.array(head), **named)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / f"{name}.npz")
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(
                f"The weights of a member cannot be kept in {self.folder}: {error.strerror or error}.",
                remedy="Free some space; the same command with --resume goes on.",
            ) from error


def fit_members(model: keras.Model, first: Stage, count: int, fit: Fit, kept: Kept, saved: Saved | None) -> History:
    """Train `count` members from the state that `model` has, and leave it with the mean of their weights.

    Where the mean does not fit the select role better than its members do on average, they lie in no common valley:
    then the best of them is left, and `stopped` says so.

    Args:
        first: the stage of the first member; the others draw otherwise.
        saved: a state of one of the members to go on from.

    Returns:
        The epochs of all members one after another, and as the last row what their mean reaches. Ctrl-C leaves the
        mean of the finished members, or the first one as far as it came, and `interrupted` set.
    """
    begun = kept.read(START)
    if begun is None:
        kept.write(START, values_of(model.variables), History())
    start = values_of(model.variables) if begun is None else begun[0]
    members: list[Member] = []
    interrupted = False
    for number in range(count):
        found = kept.read(str(number))
        if found is None:
            stage = stage_of(first, number)
            mine = saved if saved is not None and saved.stage == stage.name else None
            assign(model.variables, start)  # the states of the dropout's seeds among them
            history = fit(stage, mine)
            found = (values_of(model.weights), history)
            interrupted = history.interrupted or (history.stop_requested and number + 1 < count)
            if not history.interrupted:
                kept.write(str(number), *found)
            elif members:
                break
        members.append(found)
        if interrupted:
            break
    return _averaged(model, members, fit, interrupted)


def stage_of(first: Stage, number: int) -> Stage:
    """Return the stage of a member: the first one's, or one that draws otherwise."""
    if number == 0:
        return first
    return replace(first, name=f"{first.name}{number + 1}", salt=first.salt + 1000 * number)


def _averaged(model: keras.Model, members: Sequence[Member], fit: Fit, interrupted: bool) -> History:
    """Leave the model with the mean, or the best member, and return the epochs of all with a last row for the mean."""
    rows = [row for _, history in members for row in history.rows]
    ends = {f"member {number}": history.stopped for number, (_, history) in enumerate(members, start=1)}
    notes = [f"{name} {why}" for name, why in ends.items() if why]
    if len(members) == 1:
        weights, history = members[0]
        assign(model.weights, weights)
        return replace(history, interrupted=interrupted)
    assign(model.weights, mean_of([weights for weights, _ in members]))
    (scored,) = fit(Stage("mean", 0, 0.0, 0.0, salt=0), None).rows
    rows.append(scored)
    best, averaged = len(rows) - 1, len(members)
    losses = [history.rows[history.best_epoch]["select_loss"] for _, history in members]
    if not scored["select_loss"] <= sum(losses) / len(losses):
        number = min(range(len(losses)), key=losses.__getitem__)
        assign(model.weights, members[number][0])
        before = sum(len(history.rows) for _, history in members[:number])
        best, averaged = before + members[number][1].best_epoch, 1
        notes.append(
            f"the mean of the weights has a loss of {scored['select_loss']:.3f} on select, its members "
            f"{', '.join(f'{loss:.3f}' for loss in losses)}: member {number + 1} alone is kept. A lower learning_rate "
            "leaves members close enough to be averaged"
        )
    rows = [{**row, "epoch": float(place)} for place, row in enumerate(rows)]
    return History(rows, best, interrupted, "; ".join(notes) or None, averaged=averaged)


def mean_of(members: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Return the mean of the weights of several members, array by array."""
    return [_mean(arrays) for arrays in zip(*members, strict=True)]


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean in the type of the arrays; of what is no fraction (seeds, counters) the first."""
    first = arrays[0]
    if not np.issubdtype(first.dtype, np.floating):
        return first
    mean: np.ndarray = np.mean(np.stack(arrays).astype(np.float64), axis=0).astype(first.dtype)
    return mean
