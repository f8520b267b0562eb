"""Benchmarks import much of the library inside functions, where nothing notices a name that has gone: this does."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("dermlens", "benchmarks", "scripts")
FILES = sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])


def missing(path: Path) -> list[str]:
    """Return the imports of ours in a file, wherever in it, that lead nowhere; TensorFlow is not imported for it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] not in OURS:
            continue
        module = node.module or ""
        source = importlib.util.find_spec(module)
        names = defined(Path(source.origin)) if source and source.origin else None
        for alias in node.names:
            is_module = (
                importlib.util.find_spec(f"{module}.{alias.name}")
                if source and source.submodule_search_locations
                else None
            )
            if names is None or (alias.name not in names and is_module is None):
                found.append(f"line {node.lineno}: {module}.{alias.name}")
    return found


def defined(path: Path) -> set[str]:
    """Return the names that a module binds at its top level, and those it lists in `__all__`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Constant) and path.name == "__init__.py" and isinstance(node.value, str):
            names.add(node.value)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_import_of_ours_leads_somewhere(path: Path) -> None:
    assert missing(path) == []


def test_an_import_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "def f():\n    from dermlens.errors import DermlensError, Gone\n    from dermlens.none import X\n"
    )
    assert missing(tmp_path / "one.py") == ["line 2: dermlens.errors.Gone", "line 3: dermlens.none.X"]


def test_benchmarks_can_be_imported() -> None:
    assert importlib.import_module("benchmarks.runner")
