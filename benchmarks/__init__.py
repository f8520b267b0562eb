"""The measurements behind the claims of dermlens. `python -m benchmarks` lists the subjects.

A subject is a module of one of the folders here. It has `run(...) -> dict`, whose parameters become options of the
command line, and `table(found) -> str`, the Markdown that the pages in `docs/lab` show. `runner.py` does the rest.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EXAMPLES = ROOT / "examples" / "images"
EXAMPLE = EXAMPLES / "MEL_ISIC_0000029.jpg"
CONSOLE = Console(stderr=True, width=120)
