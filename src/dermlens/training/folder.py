"""The run folder's own notes: which run stands in it, and text files that are either the old one or the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATE = "state.json"


def read_state(out: Path) -> dict[str, Any]:
    """Return what `write_state` left: the run's key and name, its history once trained; empty for none."""
    try:
        state = json.loads((out / STATE).read_text(encoding="utf-8"))
        return state if isinstance(state, dict) else {}
    except (OSError, ValueError):
        return {}


def write_state(out: Path, state: Mapping[str, Any]) -> None:
    """Note which run stands in the folder; raises OSError and leaves the older note."""
    replace_text(out / STATE, json.dumps(state) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a kill or a full disk leaves the older one; an equal one is not touched."""
    try:
        if path.read_text(encoding="utf-8") == text:
            return
    except (OSError, ValueError):
        pass
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
