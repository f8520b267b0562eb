"""Embeddings of the frozen network and the linear probe over them, computed once in a run and kept."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from dermlens.training.material import Material
from dermlens.training.probe import Probe, fit_probe
from dermlens.training.split import ROLES

_ARRAYS = ("mean", "scale", "weights", "bias", "present")


@dataclass(frozen=True)
class Frozen:
    """Embeddings of all images, float32 (n, d), in the order of the material, and the probe fitted on them."""

    embeddings: np.ndarray
    probe: Probe


def frozen_features(
    path: Path, key: str, material: Material, embed: Callable[[], np.ndarray], console: Console
) -> Frozen:
    """Return what an earlier try of the same run kept at `path`, or compute it and keep it.

    Args:
        key: of the run; a file of another run is made anew.
        embed: computes the embeddings.
    """
    kept = _load(path, key)
    if kept is not None:
        return kept
    embeddings = embed()
    parts = {role: (embeddings[material.rows(role)], material.labels[material.rows(role)]) for role in ROLES}
    console.print("Fitting the linear probe ...", highlight=False)
    found = Frozen(embeddings, fit_probe(parts["train"], parts["select"], len(material.codes)))
    _save(path, key, found, console)
    return found


def _load(path: Path, key: str) -> Frozen | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            if head.pop("key") != key:
                return None
            return Frozen(file["embeddings"], Probe(**{name: file[name] for name in _ARRAYS}, **head))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _save(path: Path, key: str, found: Frozen, console: Console) -> None:
    probe = found.probe
    head = {"key": key, "strength": probe.strength, "classes": probe.classes, "converged": probe.converged}
    arrays = {name: getattr(probe, name) for name in _ARRAYS}
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, head=np.array(json.dumps(head)), embeddings=found.embeddings, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        console.print(f"Warning: {path} could not be kept: {error.strerror or error}.", style="yellow", highlight=False)
