"""The lab pages show what is committed, all of it, and on the model that is embedded; their commands can be given."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from benchmarks import RESULTS, ROOT
from benchmarks.accuracy import embedded
from benchmarks.accuracy.protocol import METHODS
from benchmarks.runner import LAB, REGION, Subject, find, options_of, pages, subjects, written
from dermlens.bundle.bundle import MODELS_DIR, load_bundle
from dermlens.training.recipe import make_recipe
from scripts.default_model.recipe import RECIPE

SHOWN = {name for page in pages() for name in REGION.findall(page.read_text(encoding="utf-8"))}
COMMANDS = sorted(
    {
        command
        for page in pages()
        for command in re.findall(r"python -m benchmarks [\w -]*[\w]", page.read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize("page", [p for p in pages() if REGION.search(p.read_text(encoding="utf-8"))], ids=str)
def test_a_page_shows_the_committed_results(page: object) -> None:
    text = page.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    assert written(text) == text, "run: python -m benchmarks pages"


@pytest.mark.parametrize("subject", subjects().values(), ids=lambda subject: subject.name)
def test_every_subject_has_a_result_that_its_table_shows(subject: Subject) -> None:
    record = subject.read()
    assert record["subject"] == subject.name and record["command"].startswith(f"python -m benchmarks {subject.name}")
    table = subject.module.table(record["found"])
    assert table.count("\n|") >= 2 and "None" not in table
    assert any(table in page.read_text(encoding="utf-8") for page in LAB.glob("*.md")), "no page shows it"


def test_no_result_is_left_over_and_no_picture_is_missing() -> None:
    kept = {path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*.json")}
    assert kept == {f"{subject.area}/{subject.name}.json" for subject in subjects().values()}
    for page in LAB.glob("*.md"):
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (LAB / picture).is_file()


def test_the_pages_are_short() -> None:
    assert sum(len(page.read_bytes()) for page in LAB.glob("*.md")) <= 49_000


def test_figures_of_the_embedded_model_are_those_of_the_model_that_is_embedded() -> None:
    sha256 = load_bundle(MODELS_DIR / "default").sha256
    for subject in subjects().values():
        model = subject.read()["found"].get("model", {"sha256": sha256})
        assert model["sha256"] == sha256, f"measure again: python -m benchmarks {subject.name} --write"
    assert json.loads(json.dumps(embedded.run())) == find("embedded").read()["found"]


def test_the_protocol_has_a_method_with_the_recipe_of_the_embedded_model() -> None:
    assert make_recipe(METHODS["embedded"]) == RECIPE


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_documents_can_be_given(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DERMLENS_DATA", str(ROOT))  # a command that needs data may leave out where it is
    name, *rest = [word for word in shlex.split(command)[3:] if word != "SUBJECT"] or ["pages"]
    if name in subjects():
        options_of(find(name), [*rest, "--data", str(ROOT), "--runs", "x"] if "--runs" in rest else rest)
    else:
        assert name in ("pages", "compare", "--data"), name
