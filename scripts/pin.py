"""Write requirements/*.txt: for each extra, all it needs as `name==version`, good for every Python given.

    .venv/bin/python scripts/pin.py python3.11 python3.12 python3.13

The versions in requirements/dev.txt are kept; delete a line there to move that package up. Nothing is
installed: pip only resolves. A package that only some Pythons need carries a marker.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(extra: str | None) -> list[Requirement]:
    """Return what pyproject.toml asks for in the core and one extra, `dermlens[...]` opened up."""
    found = [Requirement(line) for line in PROJECT["dependencies"]]
    for line in PROJECT["optional-dependencies"].get(extra, []) if extra else []:
        wanted = Requirement(line)
        if wanted.name == PROJECT["name"]:
            found += [r for inner in sorted(wanted.extras) for r in declared(inner)]
        else:
            found.append(wanted)
    return found


def resolve(python: str, constraints: Iterable[str]) -> dict[str, Any]:
    """Let pip of that Python choose versions for every extra at once; return its report."""
    with tempfile.TemporaryDirectory() as folder:
        limits, report = Path(folder, "limits.txt"), Path(folder, "report.json")
        limits.write_text("\n".join(constraints))
        command = [
            python,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--ignore-installed",
            "--quiet",
            "--only-binary=:all:",
        ]
        command += [
            "--constraint",
            str(limits),
            "--report",
            str(report),
            *sorted({str(r) for r in declared("dev")}),
        ]
        subprocess.run(command, check=True)
        return dict(json.loads(report.read_text()))


def closure(roots: Iterable[Requirement], report: dict[str, Any]) -> dict[str, str]:
    """Return name -> version of everything the roots need, by the report of one Python."""
    known = {canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in report["install"]}
    pins: dict[str, str] = {}
    waiting = [(root, frozenset[str]()) for root in roots]
    done = set()
    while waiting:
        wanted, extras = waiting.pop()
        environments = [{**report["environment"], "extra": extra} for extra in extras or {""}]
        if wanted.marker and not any(wanted.marker.evaluate(e) for e in environments):
            continue
        name, asked = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, asked) in done:
            continue
        done.add((name, asked))
        pins[name] = known[name]["version"]
        waiting += [(Requirement(line), asked) for line in known[name].get("requires_dist", [])]
    return pins


def merge(by_python: dict[str, dict[str, str]]) -> list[str]:
    """Return sorted requirement lines; a marker stands where the Pythons differ."""
    lines = []
    for name in sorted({name for pins in by_python.values() for name in pins}):
        versions = {python: pins.get(name) for python, pins in by_python.items()}
        for version in sorted({v for v in versions.values() if v}):
            with_it = [f'python_version == "{python}"' for python, v in versions.items() if v == version]
            marker = "" if len(with_it) == len(versions) else f" ; {' or '.join(with_it)}"
            lines.append(f"{name}=={version}{marker}")
    return lines


def main(pythons: list[str]) -> None:
    """Resolve with each Python in turn, the first one's choice binding the next, and write the files."""
    present = FOLDER / "dev.txt"
    limits = present.read_text().splitlines() if present.exists() else []
    reports: dict[str, dict[str, Any]] = {}
    for python in pythons:
        report = resolve(python, limits)
        reports[report["environment"]["python_version"]] = report
        named = {line.split("==")[0] for line in limits}
        pins = {canonicalize_name(i["metadata"]["name"]): i["metadata"]["version"] for i in report["install"]}
        limits += [f"{name}=={version}" for name, version in pins.items() if name not in named]
    for extra in [None, *PROJECT["optional-dependencies"]]:
        pins_of = {version: closure(declared(extra), report) for version, report in reports.items()}
        (FOLDER / f"{extra or 'core'}.txt").write_text("\n".join(merge(pins_of)) + "\n")
        print(f"requirements/{extra or 'core'}.txt: {len(merge(pins_of))} packages")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("Usage: scripts/pin.py python3.11 python3.12 python3.13 (oldest first)")
    main(sys.argv[1:])
