"""The notebook is the one that its source gives, and it runs from the first cell to the last."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "dermlens.ipynb"


def executed(folder: Path, timeout_s: int) -> dict[str, dict[str, Any]]:
    """Run the notebook as a user does, in examples/; return source of the cell -> its last shown value."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DERMLENS_WORK", str(folder))
        place = {"metadata": {"path": str(NOTEBOOK.parent)}}
        NotebookClient(notebook, timeout=timeout_s, kernel_name="python3", resources=place).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return {cell.source: cell.outputs[-1].get("data", {}) if cell.outputs else {} for cell in cells}


def shown(cells: dict[str, dict[str, Any]], last_line: str) -> dict[str, Any]:
    (found,) = (data for source, data in cells.items() if source.endswith(last_line))
    return found


def test_the_notebook_is_made_from_its_source() -> None:
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "scripts" / "notebook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.text() == NOTEBOOK.read_text(encoding="utf-8"), "run `make notebook`"
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.get("outputs") for cell in cells), "it is committed without outputs"


def test_the_notebook_runs_on_the_example_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DERMLENS_DATA", raising=False)
    cells = executed(tmp_path, 600)
    assert shown(cells, "\nanswers")["text/html"].count("<tr>") == 11
    assert shown(cells, "mine.explain(paths[4])")["text/html"].count("data:image/png") == 2
    assert "image/png" in shown(cells, 'epoch by epoch")')
    assert shown(cells, '"report.html")')["text/html"].startswith("<iframe sandbox ")
    assert "SHA-256" in shown(cells, "\npredictor")["text/html"]
    difference = shown(cells, ".max()")["text/plain"]
    assert float(difference.removeprefix("np.float32(").rstrip(")")) < 1e-3, "Keras and the bundle give the same logits"
    assert shown(cells, "bool(same)")["text/plain"] == "True", "the exported file gives the same logits"
    assert (tmp_path / "mine.onnx").is_file() and (tmp_path / "run" / "bundle").is_dir()


@pytest.mark.data
@pytest.mark.long
def test_the_notebook_trains_on_real_data(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DERMLENS_DATA", str(data_dir))
    executed(tmp_path, 1800)
    from dermlens.bundle.bundle import load_bundle

    card = load_bundle(tmp_path / "run" / "bundle").card
    assert len(card.classes) == 7 and card.metrics.balanced_accuracy["value"] > 2 / 7
