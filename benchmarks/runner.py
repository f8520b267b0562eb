"""Run a subject, keep what it found with the machine that it ran on, and write its tables into the pages.

    python -m benchmarks                          the subjects
    python -m benchmarks SUBJECT [--help]         measure, and print the table
    python -m benchmarks SUBJECT --write          also keep the result and write the pages
    python -m benchmarks pages                    write the pages from the results, measuring nothing
    python -m benchmarks compare [SUBJECT ...]    measure quickly, and fail when a ratio has fallen

A page shows a subject between `<!-- begin: SUBJECT -->` and `<!-- end: SUBJECT -->`; `SUBJECT.NAME` shows what the
subject's function NAME makes of the same result.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import inspect
import json
import os
import platform
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import CONSOLE, RESULTS, ROOT
from benchmarks.fresh import fresh

AREAS = ("speed", "accuracy", "trust", "audit", "hardening")
LAB = ROOT / "docs" / "lab"
PACKAGES = ("numpy", "openvino", "opencv-python-headless", "tensorflow", "keras", "onnxruntime")
REGION = re.compile(r"<!-- begin: (?P<name>[\w.]+) -->\n(?P<body>.*?)<!-- end: (?P=name) -->", re.DOTALL)
FALL = 0.25  # share by which a ratio may fall before `compare` fails
LOAD_BEFORE = os.getloadavg()[0]

Record = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """One measurement: the module `benchmarks.AREA.NAME`."""

    area: str
    name: str

    @property
    def module(self) -> Any:
        return importlib.import_module(f"benchmarks.{self.area}.{self.name}")

    @property
    def result(self) -> Path:
        return RESULTS / self.area / f"{self.name}.json"

    @property
    def summary(self) -> str:
        """First line of the module's text, read without importing it."""
        source = ROOT / "benchmarks" / self.area / f"{self.name}.py"
        return (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").splitlines()[0]

    def read(self) -> Record:
        """Return the committed result.

        Raises:
            SystemExit: there is none.
        """
        if not self.result.is_file():
            raise SystemExit(f"{self.name} has no result yet. Run: python -m benchmarks {self.name} --write")
        found: Record = json.loads(self.result.read_text(encoding="utf-8"))
        return found


def subjects() -> dict[str, Subject]:
    """Return all subjects by name, in the order of the areas."""
    files = ((area, path) for area in AREAS for path in sorted((ROOT / "benchmarks" / area).glob("*.py")))
    return {path.stem: Subject(area, path.stem) for area, path in files if path.stem != "__init__"}


def find(name: str) -> Subject:
    """Return a subject by its name.

    Raises:
        SystemExit: there is none; names the nearest.
    """
    known = subjects()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise SystemExit(f"No subject is called {name!r}.{hint} `python -m benchmarks` lists all subjects.")


# --- options ---------------------------------------------------------------------------------------------------


def options_of(subject: Subject, words: Sequence[str]) -> tuple[dict[str, Any], argparse.Namespace]:
    """Return the arguments of the subject's `run`, and what the runner itself was told."""
    module = subject.module
    parser = argparse.ArgumentParser(
        f"python -m benchmarks {subject.name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parameters = inspect.signature(module.run, eval_str=True).parameters
    for parameter in parameters.values():
        if parameter.name != "earlier":
            _add_option(parser, parameter, getattr(module, "CHOICES", {}).get(parameter.name))
    parser.add_argument("--write", action="store_true", help="keep the result and write the pages")
    parser.add_argument("--out", type=Path, help="write the result as JSON into this file")
    told = parser.parse_args(words)
    arguments = {name: getattr(told, name) for name in parameters if name != "earlier"}
    if "earlier" in parameters:
        arguments["earlier"] = subject.read()["found"] if subject.result.is_file() else {}
    return arguments, told


def _add_option(parser: argparse.ArgumentParser, parameter: inspect.Parameter, choices: Iterable[str] | None) -> None:
    default = None if parameter.default is parameter.empty else parameter.default
    name, kind = "--" + parameter.name.replace("_", "-"), parameter.annotation
    if kind is bool:
        parser.add_argument(name, action="store_true")
        return
    settings: dict[str, Any] = {"type": kind, "help": None if default is None else f"default: {default}"}
    if parameter.name == "data":
        default = os.environ.get("DERMLENS_DATA")
        settings["help"] = "folder with ham10000/, isic9/ and isic_reference.csv; default: DERMLENS_DATA"
    if typing.get_origin(kind) is tuple:
        shown = ", ".join(map(str, default or ())).replace("%", "%%")
        settings |= {"nargs": "+", "type": typing.get_args(kind)[0], "help": f"default: {shown}"}
    elif typing.get_origin(kind) is types.UnionType:
        settings["type"] = next(part for part in typing.get_args(kind) if part is not type(None))
    if choices is not None:
        settings |= {"choices": tuple(choices), "metavar": parameter.name.upper()}
    required = parameter.default is parameter.empty and default is None
    parser.add_argument(name, default=default, required=required, **settings)


def command_of(subject: Subject, words: Iterable[str]) -> str:
    """Return the command without what concerns this machine alone: a path is named by its option, in capitals."""
    parameters = inspect.signature(subject.module.run, eval_str=True).parameters.values()
    paths = {
        f"--{p.name.replace('_', '-')}" for p in parameters if Path in (p.annotation, *typing.get_args(p.annotation))
    }
    shown, option = [], ""
    for word in words:
        option = word if word.startswith("--") else option
        if option not in ("--write", "--out"):
            shown.append(option[2:].upper() if option in paths and word != option else word)
    return " ".join([f"python -m benchmarks {subject.name}", *shown])


# --- measuring -------------------------------------------------------------------------------------------------


def measure(subject: Subject, arguments: Mapping[str, Any], command: str) -> Record:
    """Run a subject and return its record: command, day, commit, machine and what was found."""
    CONSOLE.print(f"{subject.name}: {subject.summary}", highlight=False)
    found = subject.module.run(**arguments)
    today = datetime.now(UTC).date().isoformat()
    facts = {"subject": subject.name, "command": command, "date": today, "commit": _commit(), "machine": machine()}
    if arguments.get("earlier"):  # a part of the result is older: the command of the whole, and that of this part
        facts |= {"command": f"python -m benchmarks {subject.name}", "last_part": command}
    plain: Record = json.loads(json.dumps({**facts, "found": found}, default=float))
    return plain


def machine() -> dict[str, Any]:
    """Describe this machine: processor, cores, memory, load before the run, system and versions."""
    import openvino as ov

    return {
        "processor": " ".join(ov.Core().get_property("CPU", "FULL_DEVICE_NAME").split()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "load_before": round(LOAD_BEFORE, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return done.stdout.strip() or None


# --- pages -----------------------------------------------------------------------------------------------------


def pages(root: Path = ROOT) -> list[Path]:
    """Return the files that may show a subject."""
    return [path for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if path.is_file()]


def region(name: str) -> str:
    """Return what stands between the marks of `SUBJECT` or `SUBJECT.FUNCTION`, from the committed result."""
    subject_name, _, function = name.partition(".")
    subject = find(subject_name)
    record = subject.read()
    if function and not callable(getattr(subject.module, function, None)):
        raise SystemExit(f"The region {name!r} asks for a function that {subject.name} does not have: {function}.")
    text = getattr(subject.module, function or "table")(record["found"])
    return f"{text}\n" if function else f"{text}\n\n{source(record)}\n"


def source(record: Record) -> str:
    """Return where a table comes from: command, day, commit and machine."""
    facts = record["machine"]
    where = f", {facts['processor']}, {facts['cores']} cores" if facts else ""
    where = where.replace("(R)", "").replace(" Processor", "")
    return f"*`{record['command']}`: {record['date']}, commit {record['commit']}{where}*"


def written(text: str, names: Iterable[str] | None = None) -> str:
    """Return a page with the regions of these subjects written anew; of all without names."""
    wanted = None if names is None else set(names)

    def anew(match: re.Match[str]) -> str:
        name = match["name"]
        if wanted is not None and name.partition(".")[0] not in wanted:
            return match[0]
        return f"<!-- begin: {name} -->\n{region(name)}<!-- end: {name} -->"

    return REGION.sub(anew, text)


def write_pages(names: Iterable[str] | None = None, root: Path = ROOT) -> list[Path]:
    """Write the regions of these subjects, of all without names, and return the pages that have changed."""
    changed = []
    for page in pages(root):
        before = page.read_text(encoding="utf-8")
        after = written(before, names)
        if after != before:
            page.write_text(after, encoding="utf-8")
            changed.append(page)
    return changed


def keep(subject: Subject, record: Record) -> None:
    """Keep a record as the committed result, and write pages and figures."""
    subject.result.parent.mkdir(parents=True, exist_ok=True)
    subject.result.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    changed = write_pages([subject.name])
    for name, image in getattr(subject.module, "figures", lambda _: {})(record["found"]).items():
        changed.append(LAB / name)
        changed[-1].parent.mkdir(parents=True, exist_ok=True)
        changed[-1].write_bytes(image)
    for path in (subject.result, *changed):
        CONSOLE.print(f"Written: {path.relative_to(ROOT)}", highlight=False)


# --- comparing -------------------------------------------------------------------------------------------------


def fallen(before: Mapping[str, Any], now: Mapping[str, Any], fall: float = FALL) -> list[str]:
    """Return a sentence for each ratio of `now` whose median lies more than the share `fall` below that of `before`."""
    return [
        f"{name}: {ratio['median']:.2f}, was {before[name]['median']:.2f}"
        for name, ratio in now.items()
        if name in before and ratio["median"] < before[name]["median"] * (1 - fall)
    ]


def below_floor(now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each ratio that lies below its own floor."""
    return [
        f"{name}: {ratio['median']:.2f}, never below {ratio['floor']}"
        for name, ratio in now.items()
        if ratio["median"] < ratio.get("floor", 0)
    ]


def quick_subjects() -> list[Subject]:
    """Return the subjects whose ratios can be compared: they have `QUICK`, the arguments of a short run."""
    return [subject for subject in subjects().values() if hasattr(subject.module, "QUICK")]


def quick_ratios(name: str) -> dict[str, Any]:
    """Return the ratios of a short run of a subject in this process."""
    module = find(name).module
    earlier: dict[str, Any] = {"earlier": {}} if "earlier" in inspect.signature(module.run).parameters else {}
    ratios: dict[str, Any] = module.run(**module.QUICK, **earlier)["ratios"]
    return ratios


def compare(words: Sequence[str]) -> None:
    """Measure quickly, print each ratio beside the committed one, and fail when one has fallen."""
    parser = argparse.ArgumentParser("python -m benchmarks compare", description=compare.__doc__)
    parser.add_argument("subjects", nargs="*", help="default: all that have a short run")
    parser.add_argument("--fall", type=float, default=FALL, help="share by which a ratio may fall")
    told = parser.parse_args(words)
    problems, compared = [], 0
    for subject in [find(name) for name in told.subjects] or quick_subjects():
        if not hasattr(subject.module, "QUICK"):
            quick = ", ".join(each.name for each in quick_subjects())
            raise SystemExit(f"{subject.name} has no short run to compare. These have one: {quick}.")
        now = fresh(quick_ratios, subject.name).value  # the threads of another subject's TensorFlow would be counted in
        before = subject.read()["found"]["ratios"]
        for name, ratio in now.items():
            was = f"{before[name]['median']:.2f}" if name in before else "not measured"
            print(f"{subject.name}, {name}: {ratio['median']:.2f} (committed: {was})")
        compared += len(set(now) & set(before))
        problems += [*fallen(before, now, told.fall), *below_floor(now)]
    print(f"{compared} ratios compared, {len(problems)} below their floor or fallen by more than {told.fall:.0%}.")
    if problems or not compared:
        raise SystemExit("\n".join(["Slower than before:", *problems]))


def listing() -> str:
    """Return the subjects by area, a line each."""
    lines = [(__doc__ or "").strip()]
    for area in AREAS:
        own = [subject for subject in subjects().values() if subject.area == area]
        lines += ["", area, *(f"  {subject.name:18}{subject.summary}" for subject in own)]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    name, *rest = [*(sys.argv[1:] if words is None else words)] or ["--help"]
    if name in ("-h", "--help"):
        print(listing())
    elif name == "pages":
        print("\n".join(str(path.relative_to(ROOT)) for path in write_pages(rest or None)) or "No page has changed.")
    elif name == "compare":
        compare(rest)
    else:
        subject = find(name)
        arguments, told = options_of(subject, rest)
        record = measure(subject, arguments, command_of(subject, rest))
        print(subject.module.table(record["found"]))
        if told.out:
            told.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if told.write:
            keep(subject, record)
