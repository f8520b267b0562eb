"""How large the house is, and whether it is in order: modules, lines, folders, files, functions and import circles.

    .venv/bin/python scripts/house.py

Counts every import between modules of src/dermlens, those inside functions and for type checking too. Ends with 1
where a limit is passed.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "src" / "dermlens"
MOST_MODULES, MOST_LINES, MOST_IN_A_FOLDER, LONGEST_FILE, LONGEST_FUNCTION = 150, 29_500, 22, 500, 80


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name; a package bears the name of its folder."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in inner}
    return found & set(known)


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other in a circle (Tarjan 1972, strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            group, stack[at:] = stack[at:], []
            if len(group) > 1 or name in arrows[name]:
                found.append(sorted(group))

    for name in arrows:
        if name not in index:
            visit(name)
    return found


def long_functions(path: Path) -> list[str]:
    """Return the functions of a file that are longer than allowed, docstring included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [f"{path.name}:{n.name}" for n in functions if (n.end_lineno or 0) - n.lineno + 1 > LONGEST_FUNCTION]


def main() -> int:
    """Print the counts and what passes a limit; return 1 where something does."""
    known = modules()
    plain = {name: path for name, path in known.items() if path.name != "__init__.py"}
    sources = [*known.values(), *ROOT.rglob("*.js")]
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in sources if "vendor" not in path.parts}
    folder, in_folder = Counter(path.parent for path in plain.values()).most_common(1)[0]
    longest = max(lines, key=lambda path: lines[path])
    rings = circles({name: imports_of(path, known) for name, path in known.items()})
    functions = [name for path in known.values() for name in long_functions(path)]
    checks = [
        ("modules", len(plain), MOST_MODULES, ""),
        ("lines of Python and JavaScript", sum(lines.values()), MOST_LINES, ""),
        ("modules in the largest folder", in_folder, MOST_IN_A_FOLDER, folder.name),
        ("lines of the longest file", lines[longest], LONGEST_FILE, longest.name),
        (f"functions above {LONGEST_FUNCTION} lines", len(functions), 0, ", ".join(functions)),
        ("import circles", len(rings), 0, "; ".join(" <-> ".join(ring) for ring in rings)),
    ]
    for what, count, most, where in checks:
        mark = "TOO MANY" if count > most else "ok"
        print(f"{what}: {count:,} (at most {most:,}) {mark}{f'  {where}' if where else ''}")
    return int(any(count > most for _, count, most, _ in checks))


if __name__ == "__main__":
    sys.exit(main())
