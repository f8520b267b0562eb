"""The code blocks of README.md, CONTRIBUTING.md and docs/, and when a test runs each of them.

The info string of a block says what it is. A comment in the line above a block changes when it runs, and says why:

    <!-- test: long: it trains -->

`long` leaves a block to `make test-long`; `never` runs it nowhere. Of the commands in a `sh` block, those in `NEVER`
do not run either. The options of every command are checked in any case.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from dermlens import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)
CODE, NO_CODE = ("sh", "python", "toml", "yaml", "csv"), ("text", "nginx")
WHEN = ("always", "long", "never")

# What never runs in a test: pattern of the command, and why.
NEVER = (
    (r"^(\w+=\S+ )?make ", "it sets up an environment; that its target exists is checked"),
    (r"^python -m pip install ", "it changes the environment; that the extra exists is checked"),
    (r"^pytest |^python scripts/", "it is the tests themselves, or changes the repository"),
    (r"^python -m benchmarks\b", "it measures for minutes or hours; that the subject exists is checked"),
    (r"^docker ", "it needs Docker; scripts/container_check.sh goes through the steps without it"),
    (r"^hf |\bhf://|\bs3://", "it needs the network"),
)
# The run that other commands use: trained once, before all pages.
FIRST_TRAINING = ["train", "my_images", "--out", "runs/mine"]
# What a test adds to a command so that it takes seconds; a later option wins over an earlier one and over the recipe.
TINY = ("size_px=64", "head_epochs=2", "epochs=1", "views=1", "fine_tune=head", "batch_size=16")
CHEAPER = {
    "train": [word for setting in TINY for word in ("--set", setting)],
    "tune": ["--trials", "1", "--folds", "1", *(word for setting in TINY for word in ("--set", setting))],
}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, what it is, and when it runs."""

    page: str
    line: int
    language: str
    text: str
    when: str = "always"
    reason: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a `sh` block, without `.venv/bin/`."""

    block: Block
    text: str
    when: str
    reason: str


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    found: list[Block] = []
    opened: tuple[int, str, list[str]] | None = None
    mark = ("always", "")
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if opened and line == "```":
            start, language, lines = opened
            found.append(Block(page, start, language, "\n".join(lines) + "\n", *mark))
            opened, mark = None, ("always", "")
        elif opened:
            opened[2].append(line)
        elif line.startswith("```"):
            opened = (number, line[3:].strip(), [])
        elif match := re.fullmatch(r"<!-- test: (\w+): (.+) -->", line):
            mark = (match[1], match[2])
        elif line.strip():
            mark = ("always", "")
    return found


def commands(page: str) -> list[Command]:
    """Return the commands in the `sh` blocks of a page; a line that ends in a backslash continues in the next."""
    return [command for block in blocks(page) if block.language == "sh" for command in commands_of(block)]


def commands_of(block: Block) -> list[Command]:
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    return [_command(block, line.replace(".venv/bin/", "")) for line in lines if re.match(r"[^#\s]", line)]


def _command(block: Block, line: str) -> Command:
    text = shlex.join(words(line)) if plain(line) else re.sub(r"\s{2,}# .*", "", line)
    for pattern, reason in NEVER if block.when != "never" else ():
        if re.search(pattern, text):
            return Command(block, text, "never", reason)
    return Command(block, text, block.when, block.reason)


def plain(line: str) -> bool:
    """Tell whether a line is one program with its arguments: no pipe, redirection, variable or setting."""
    return not re.search(r"[|>$]|^\w+=", line.partition(" # ")[0])


def words(line: str) -> list[str]:
    """Return the words of a line without its comment."""
    return shlex.split(line, comments=True)


def spans(page: str) -> list[str]:
    """Return what is between single backticks outside of blocks."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def dermlens_arguments(text: str) -> list[str] | None:
    """Return the arguments of `dermlens` in a command, wherever it is in the line; None if it is not called."""
    match = re.search(r"(?:^|\s)dermlens (\w[^|>]*)", text)
    return words(match[1]) if match else None


def run_dermlens(arguments: list[str]) -> int:
    """Run the command line in this process, as TensorFlow takes long to start; return the exit code."""
    try:
        cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
