"""The state of a training in one file, so that a run which was killed goes on at the step where it was saved.

Weights, optimiser, averages, the state of every seed generator, the best weights and the history. What is drawn in a
step follows from the step's number, so no position of a loader need be kept. The file is written beside its place,
brought to the disk and then moved: whatever happens, the last good one stands.
"""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

EVERY_S = 60.0
LARGEST_SHARE = 0.05  # of the time that may go into writing
_VERSION = 1

Arrays = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Saved:
    """A state read back: the stage it belongs to, its arrays by kind, and plain values."""

    stage: str
    arrays: Arrays
    values: dict[str, Any]


@dataclass
class Checkpoint:
    """Writes `path` now and then, and reads it.

    Attributes:
        key: identifies recipe, data, weights; a file with another key is not read.
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
        """Write the state; a full disk is told, leaves the last file as it is and does not end the training."""
        start = time.monotonic()
        temporary = self.path.with_name(f".{self.path.name}.new")
        head = {"version": _VERSION, "key": self.key, "stage": stage, "values": values}
        named = {f"{kind}/{i:05d}": array for kind, items in arrays.items() for i, array in enumerate(items)}
        try:
            with temporary.open("wb") as file:
                np.savez(file, head=np.array(json.dumps(head)), **named)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self.console.print(
                f"Warning: the checkpoint {self.path} could not be written: {error.strerror or error}. "
                "Training goes on; the last good checkpoint is kept. Free some space.",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )
            return False
        finally:
            self._last = time.monotonic()
            self._cost_s = self._last - start
        return True

    def load(self) -> Saved | None:
        """Return the state of exactly this run; None where there is none, or none that can be read."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                head = json.loads(str(file["head"]))
                if head["version"] != _VERSION or head["key"] != self.key:
                    return None
                arrays: Arrays = {}
                for name in sorted(set(file.files) - {"head"}):
                    arrays.setdefault(name.split("/")[0], []).append(file[name])
                return Saved(str(head["stage"]), arrays, dict(head["values"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            self.console.print(
                f"The checkpoint {self.path} cannot be read ({error}); this part of the training starts anew.",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )
            return None


def values_of(variables: Sequence[Any]) -> list[np.ndarray]:
    """Return copies of the values of Keras or TensorFlow variables, in order."""
    return [np.array(v.numpy()) for v in variables]


def assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Give variables the values kept by `values_of`; raises ValueError where number or shape differ."""
    for variable, value in zip(variables, values, strict=True):
        if tuple(variable.shape) != value.shape:
            raise ValueError(f"shape {value.shape} for a variable of shape {tuple(variable.shape)}")
        variable.assign(value)
