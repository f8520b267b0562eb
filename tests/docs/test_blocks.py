"""What the documents name exists: commands, options, targets, extras, files and settings. Nothing is run."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

import pictures
from dermlens.cli.app import app
from dermlens.data.layouts import MANIFEST_COLUMNS
from dermlens.data.manifest import read_dataset
from dermlens.training.recipe import make_recipe
from doc_blocks import (
    CODE,
    NEVER,
    NO_CODE,
    PAGES,
    ROOT,
    WHEN,
    Block,
    blocks,
    commands,
    dermlens_arguments,
    spans,
    words,
)

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [command for page in PAGES for command in commands(page)]
ROOT_COMMAND = get_command(app)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is_and_when_it_runs(page: str) -> None:
    text, found = (ROOT / page).read_text(encoding="utf-8"), blocks(page)
    assert [b.place for b in found if b.language not in (*CODE, *NO_CODE)] == [], "name the language, or `text`"
    assert [b.place for b in found if b.when not in WHEN or (b.when != "always" and len(b.reason) < 8)] == []
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(found), "fences start their line"
    marks = sum(block.when != "always" for block in found) + sum("<!-- test:" in block.text for block in found)
    assert text.count("<!-- test:") == marks, "a mark is right above its block"


@pytest.mark.parametrize("page", [page for page in PAGES if any(dermlens_arguments(c.text) for c in commands(page))])
def test_the_real_command_line_takes_every_command(page: str) -> None:
    for command in commands(page):
        parse(ROOT_COMMAND, "dermlens", dermlens_arguments(command.text) or ["doctor"])


def parse(command: Any, name: str, arguments: list[str]) -> None:
    """Read the arguments as the program would, down to the last verb; nothing is carried out.

    Raises:
        an error of Typer's Click: an unknown verb or option, a missing or a bad value.
    """
    context = command.make_context(name, list(arguments))
    if isinstance(command, TyperGroup) and context._protected_args:
        verb, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        parse(found, verb or "", rest)


def test_a_wrong_option_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(ROOT_COMMAND, "dermlens", ["models", "add", "x.zip", "--sha265", "abc"])
    with pytest.raises(Exception, match="No such command"):
        parse(ROOT_COMMAND, "dermlens", ["classify", "photo.jpg"])


def test_every_program_is_one_that_a_test_knows_how_to_run() -> None:
    texts = [command.text for command in COMMANDS if command.when != "never"]
    programs = {re.sub(r'^\w+="[^"]*" ', "", text).split()[0] for text in texts}
    assert programs <= {"dermlens", "curl"}, "say in tests/doc_blocks.py what becomes of it"


@pytest.mark.parametrize("page", PAGES)
def test_verbs_options_targets_and_files_named_in_the_text_exist(page: str) -> None:
    missing = []
    for span in [*spans(page), *(command.text for command in commands(page))]:
        first, *rest = re.sub(r"^\w+=\S+ ", "", span.replace(".venv/bin/", "")).split()
        if first == "dermlens" and rest and span in spans(page):
            missing += [f"`{span}`: {word}" for word in unknown(rest)]
        if first == "make" and rest and not has_target(rest[0]):
            missing.append(f"`{span}`")
        if first == "python" and rest and rest[0].endswith(".py") and not (ROOT / rest[0]).is_file():
            missing.append(f"`{span}`")
    assert missing == []


def unknown(arguments: list[str]) -> list[str]:
    """Return the verb or the options in a span like `train DATA [--resume]` that the program does not have."""
    command: Any = ROOT_COMMAND
    while isinstance(command, TyperGroup) and arguments and re.fullmatch(r"[a-z]+", arguments[0]):
        if arguments[0] not in command.commands:
            return [arguments[0]]
        command, arguments = command.commands[arguments[0]], arguments[1:]
    offered = {option for parameter in command.params for option in parameter.opts} | {"--help", "--version"}
    options = [match[0] for word in arguments if (match := re.match(r"--[\w-]+", word.lstrip("[")))]
    return [option for option in options if option not in offered]


def has_target(name: str) -> bool:
    return bool(re.search(rf"^{re.escape(name)}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_first_command_of_the_readme_can_be_made() -> None:
    done = subprocess.run(["make", "demo", "--dry-run"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", sorted({c.text for c in COMMANDS if "pip install" in c.text}))
def test_an_extra_that_is_installed_exists(text: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("text", sorted({c.text for c in COMMANDS if c.text.startswith("python -m benchmarks ")}))
def test_a_subject_of_the_benchmarks_exists(text: str) -> None:
    subject = words(text)[3]
    assert subject in ("pages", "compare") or any((ROOT / "benchmarks").rglob(f"{subject.replace('-', '_')}.py"))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=lambda block: block.place)
def test_a_recipe_is_one(block: Block) -> None:
    make_recipe(tomllib.loads(block.text))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "csv"], ids=lambda block: block.place)
def test_a_table_of_images_can_be_read(block: Block, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(block.text)))
    assert set(rows[0]) <= set(MANIFEST_COLUMNS)
    for seed, row in enumerate(rows):
        pictures.save(tmp_path / row["image"], pictures.lesion(seed))
    (tmp_path / "table.csv").write_text(block.text, encoding="utf-8")
    assert len(read_dataset(tmp_path / "table.csv").records) == len(rows)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda block: block.place)
def test_a_deployment_is_one_and_starts_the_server_with_options_that_it_has(block: Block) -> None:
    for document in yaml.safe_load_all(block.text):
        for container in document["spec"]["template"]["spec"]["containers"]:
            assert unknown(["serve", *container["args"]]) == []
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_no_rule_for_what_never_runs_is_left_over() -> None:
    for pattern, reason in NEVER:
        assert any(command.reason == reason for command in COMMANDS), f"nothing matches {pattern}: remove the row"
