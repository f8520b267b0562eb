"""The state of a training on disk, so that a run that was killed resumes at the step where it was saved.

`state.json` says which run is in a folder and how far it came. `checkpoint.npz` holds weights, optimiser, averages, the
state of every seed generator, the best weights and the history. What a step draws follows from its number, so no
position of a loader is needed. Files are written beside their place and moved: the last good one always stays.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dermlens.files import write_text
from dermlens.training.caches import UNREADABLE, load_arrays, save_arrays

EVERY_S = 60.0
LARGEST_SHARE = 0.05  # of the time that may go into writing
STATE = "state.json"
_VERSION = 1

Arrays = dict[str, list[np.ndarray]]


def read_state(out: Path) -> dict[str, Any]:
    """Return what `write_state` left: the run's key and name, its history once trained; empty where there is none."""
    try:
        state = json.loads((out / STATE).read_text(encoding="utf-8"))
        return state if isinstance(state, dict) else {}
    except (OSError, ValueError):
        return {}


def write_state(out: Path, state: Mapping[str, Any]) -> None:
    """Note which run is in the folder. Raises OSError; the older note is unchanged."""
    write_text(out / STATE, json.dumps(state) + "\n")


@dataclass(frozen=True)
class Saved:
    """A state read back: its stage, its arrays by kind, and plain values."""

    stage: str
    arrays: Arrays
    values: dict[str, Any]


@dataclass
class Checkpoint:
    """Writes `path` now and then, and reads it.

    Attributes:
        key: identifies recipe, data and weights; a file with another key is not read.
        every_s: shortest time between two files; longer where writing is slow.
    """

    path: Path
    key: str
    console: Console
    every_s: float = EVERY_S
    _last: float = field(default_factory=time.monotonic)
    _cost_s: float = 0.0

    def due(self) -> bool:
        """Say whether it is time for another file."""
        return time.monotonic() - self._last >= max(self.every_s, self._cost_s / LARGEST_SHARE)

    def save(self, stage: str, arrays: Arrays, values: dict[str, Any]) -> bool:
        """Write the state. A full disk is reported; the last file stays and the training continues."""
        start = time.monotonic()
        head = {"version": _VERSION, "key": self.key, "stage": stage, "values": values}
        named = {f"{kind}/{i:05d}": array for kind, items in arrays.items() for i, array in enumerate(items)}
        try:
            save_arrays(self.path, head, named)
        except OSError as error:
            self._warn(
                f"Warning: the checkpoint {self.path} could not be written: {error.strerror or error}. "
                "Training continues; the last good checkpoint is kept. Free some space."
            )
            return False
        finally:
            self._last = time.monotonic()
            self._cost_s = self._last - start
        return True

    def load(self) -> Saved | None:
        """Return the state of exactly this run; None where there is none that can be read."""
        try:
            head, named = load_arrays(self.path)
            if head["version"] != _VERSION or head["key"] != self.key:
                return None
            arrays: Arrays = {}
            for name, array in named.items():
                arrays.setdefault(name.split("/")[0], []).append(array)
            return Saved(str(head["stage"]), arrays, dict(head["values"]))
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            self._warn(f"The checkpoint {self.path} cannot be read ({error}); this stage of the training starts again.")
            return None

    def _warn(self, line: str) -> None:
        self.console.print(line, style="yellow", soft_wrap=True)


def values_of(variables: Sequence[Any]) -> list[np.ndarray]:
    """Return copies of the values of Keras or TensorFlow variables, in order."""
    return [np.array(v.numpy()) for v in variables]


def assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Give variables the values from `values_of`; raises ValueError where number or shape differ."""
    for variable, value in zip(variables, values, strict=True):
        if tuple(variable.shape) != value.shape:
            raise ValueError(f"shape {value.shape} for a variable of shape {tuple(variable.shape)}")
        variable.assign(value)
