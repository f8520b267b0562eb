"""What every file keeps to: no machine's paths, no registry hosts, no large files, calm library code."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.check

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "dermlens"
LIBRARY = sorted(SOURCE.rglob("*.py"))
MAX_FILE_BYTES = 25_000_000
LOCK_FILES = {
    "uv.lock",
    "pylock.toml",
    "poetry.lock",
    "Pipfile.lock",
    "pdm.lock",
    "package-lock.json",
    "yarn.lock",
}
# Written in pieces, so that this file does not match itself.
HOSTS = (
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "registry.npmjs" + ".org",
    "index" + "-url",
    "find" + "-links",
)
MACHINE_PATH = re.compile(
    r"(?<![\w.$}])/(?:" + "|".join(["work", "root", "home/[a-z]", "Users/[A-Za-z]", "opt/pypi"]) + r")\b"
)


def tracked_files() -> list[Path]:
    """Return what git tracks or would add; outside a checkout, every file that is not hidden."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=600)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [p for p in ROOT.rglob("*") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


def text_of(path: Path) -> str:
    """Return the file as text; a binary file has none."""
    data = path.read_bytes()
    return "" if b"\0" in data[:8192] else data.decode("utf-8", errors="replace")


def test_no_registry_host_and_no_path_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        for number, line in enumerate(text_of(path).splitlines(), 1):
            if any(host in line for host in HOSTS) or MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_no_placeholder_is_left() -> None:
    placeholder = re.compile("@" + r"[A-Z]{4,}@")
    assert [str(p) for p in tracked_files() if p.suffix in {".md", ".html"} and placeholder.search(text_of(p))] == []


def test_no_lock_file_and_no_large_file() -> None:
    files = tracked_files()
    assert [str(p) for p in files if p.name in LOCK_FILES] == []
    assert [str(p) for p in files if p.stat().st_size > MAX_FILE_BYTES] == []


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda p: p.name)
def test_requirements_are_plain_pins(path: Path) -> None:
    marker = r'python_version == "3\.1[123]"'
    pin = re.compile(rf"[a-z0-9-]+==[0-9][0-9a-z.]*( ; {marker}( or {marker})*)?")
    assert [line for line in path.read_text().splitlines() if not pin.fullmatch(line)] == []


def test_smaller_requirement_files_agree_with_the_largest() -> None:
    everything = set((ROOT / "requirements" / "dev.txt").read_text().splitlines())
    for path in (ROOT / "requirements").glob("*.txt"):
        assert set(path.read_text().splitlines()) <= everything, path.name


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(SOURCE)))
def test_library_code_is_calm(path: Path) -> None:
    """No assert, bare except or `raise Exception`; and no print, save in the command line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert):
            found.append(f"{node.lineno}: assert")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{node.lineno}: bare except")
        if isinstance(node, ast.Raise) and re.match(r"(Base)?Exception\b", ast.unparse(node.exc or ast.Constant(""))):
            found.append(f"{node.lineno}: raise Exception")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and path.parent.name != "cli":
            found.append(f"{node.lineno}: print")
    assert not found, "\n".join(found)
