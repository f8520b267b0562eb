"""The code blocks of README.md and docs/, the commands in them, and what a test does with each of them.

A block says in its info string what it is: `sh`, `python`, `toml`, `yaml`, `csv`, `nginx`, or `text` for what is no
code. A comment in the line above a block changes when it runs, and says why:

    <!-- test: long: it needs mine.onnx, which the block above makes -->

Commands (lines of a `sh` block) are told apart by the tables below. Nothing is left out in silence: `tests/docs` prints
and checks what does not run, with its reason.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from dermlens import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
CODE, NO_CODE = ("sh", "python", "toml", "yaml", "csv"), ("text", "nginx")
WHEN = ("always", "long", "data", "never")

# What never runs in a test: pattern of the command, and why.
NEVER = (
    (r"^make ", "it sets up an environment; `make --dry-run` finds its target, and CI runs `make test` itself"),
    (r"^python -m pip install ", "it changes the environment; that the extra exists is checked"),
    (r"^docker ", "it needs Docker; scripts/container_check.sh goes through the steps without it"),
    (r"^hf upload ", "it needs the network"),
    (r"\bhf://", "it needs the network; the options are checked"),
    (r"\bs3://", "it needs the network; the options are checked"),
    (r"--address HOST", "it needs a Ray cluster; the options are checked"),
    (r"^python benchmarks/", "it measures for hours on all the data; that script and options exist is checked"),
    (r"^cp runs/accuracy/|^python scripts/results.py", "it writes into the repository; a test compares what it writes"),
)
# What takes too long for `make test`, where only the options are checked; `make test-long` runs it.
LONG = (
    r"^dermlens (train|tune|export) ",
    r"--engine ray",
    r" --latency",
    r" runs/lite1 ",
    r"^python ",
)
# What needs the folder that DERMLENS_DATA names.
DATA = (r"\bisic9\b", r"\bham10000\b")
# The run that the other commands use: trained once, before all pages.
FIRST_TRAINING = ["train", "my_images", "--out", "runs/mine"]
# What a test puts behind a command so that it takes seconds; a later option of a line wins over the recipe's.
TINY = ("size_px=64", "head_epochs=2", "epochs=1", "views=1", "fine_tune=head", "batch_size=16")
CHEAPER = {
    "train": [word for setting in TINY for word in ("--set", setting)],
    "tune": ["--trials", "1", "--folds", "1", *(word for setting in TINY for word in ("--set", setting))],
}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it is, and when it runs."""

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
    """One command of a `sh` block, with `.venv/bin/` left out."""

    block: Block
    text: str
    when: str
    reason: str


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    found, opened, mark = [], None, ("always", "")
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if opened is not None:
            if line.strip() == "```":
                start, language, lines = opened
                found.append(Block(page, start, language, "\n".join(lines) + "\n", *mark))
                opened, mark = None, ("always", "")
            else:
                opened[2].append(line)
        elif line.startswith("```"):
            opened = (number, line[3:].strip(), [])
        elif match := re.fullmatch(r"<!-- test: (\w+): (.+) -->", line):
            mark = (match[1], match[2])
        elif line.strip():
            mark = ("always", "")
    return found


def commands(block: Block) -> list[Command]:
    """Return the commands of a `sh` block; lines that end in a backslash go on."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [_command(block, line.replace(".venv/bin/", "")) for line in lines]


def _command(block: Block, line: str) -> Command:
    text = shlex.join(words(line)) if plain(line) else re.sub(r"\s{2,}# .*", "", line)
    if block.when != "always":
        return Command(block, text, block.when, block.reason)
    for pattern, reason in NEVER:
        if re.search(pattern, text):
            return Command(block, text, "never", reason)
    for when, patterns in (("data", DATA), ("long", LONG)):
        if any(re.search(pattern, text) for pattern in patterns) and words(line)[1:] != FIRST_TRAINING:
            return Command(block, text, when, "")
    return Command(block, text, "always", "")


def plain(line: str) -> bool:
    """Tell whether a line is one program with its arguments: no pipe, redirection, quoted shell code or setting."""
    return not re.search(r"[|>$]|^\w+=", line.partition(" # ")[0])


def words(line: str) -> list[str]:
    """Return the words of a line without its comment."""
    return shlex.split(line, comments=True)


def spans(page: str) -> list[str]:
    """Return what stands between single backticks outside of blocks."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def dermlens_arguments(text: str) -> list[str] | None:
    """Return the arguments of `dermlens` in a command, wherever it stands in the line; None where it is not called."""
    match = re.search(r"(?:^|\s)dermlens (\w[^|>]*)", text)
    return words(match[1]) if match else None


def run_dermlens(arguments: list[str]) -> int:
    """Run the command line in this process, as TensorFlow takes long to start; return the exit code."""
    try:
        cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
