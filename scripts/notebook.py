"""Write examples/dermlens.ipynb from examples/notebook.py, without outputs; the same text gives the same bytes.

make notebook
"""

from __future__ import annotations

from pathlib import Path

import jupytext

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOK = EXAMPLES / "dermlens.ipynb"


def text() -> str:
    """Return the notebook as JSON, its cells numbered instead of named at random."""
    notebook = jupytext.read(EXAMPLES / "notebook.py")
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
    return str(jupytext.writes(notebook, fmt="ipynb")).rstrip("\n") + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(text(), encoding="utf-8")
