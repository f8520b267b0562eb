"""The runner: subjects by name, options from their signatures, results with their machine, regions of pages."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import runner
from benchmarks.fresh import fresh, memory_mb
from benchmarks.runner import Subject, command_of, find, machine, options_of, region, subjects, write_pages, written


def run(*, data: Path, earlier: dict[str, Any], count: int = 3, only: tuple[str, ...] = ("a", "b"), deep: bool = False,
        cache: Path | None = None) -> dict[str, Any]:  # fmt: skip
    """A subject for these tests."""
    return {"count": count, "only": only, "before": earlier, "deep": deep, "cache": str(cache), "data": str(data)}


def table(found: dict[str, Any]) -> str:
    return f"| count | {found['count']} |"


def short(found: dict[str, Any]) -> str:
    return f"{found['count']} in all"


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A subject `counted`, whose results and pages lie in a folder of their own."""
    module = SimpleNamespace(run=run, table=table, short=short, CHOICES={"only": ("a", "b", "c")}, __doc__="Counts.")
    monkeypatch.setattr(Subject, "module", property(lambda self: module))
    monkeypatch.setattr(Subject, "summary", property(lambda self: "Counts."))
    for name, path in (("RESULTS", tmp_path / "results"), ("ROOT", tmp_path), ("LAB", tmp_path / "docs" / "lab")):
        monkeypatch.setattr(runner, name, path)
    own = Subject("speed", "counted")
    monkeypatch.setattr(runner, "subjects", lambda: {"counted": own})
    monkeypatch.setattr(runner, "pages", lambda root=tmp_path: [tmp_path / "page.md"])
    monkeypatch.delenv("DERMLENS_DATA", raising=False)
    return own


PAGE = """# Page
<!-- begin: counted -->
old
<!-- end: counted -->
between
<!-- begin: counted.short -->
<!-- end: counted.short -->
after
"""


def test_an_unknown_subject_names_the_nearest() -> None:
    with pytest.raises(SystemExit, match=r"No subject is called 'noveltie'\. Did you mean novelty\?"):
        find("noveltie")
    with pytest.raises(SystemExit, match="lists all subjects"):
        find("xyzzy")


def test_every_subject_can_be_run_and_shown_and_says_what_it_asks() -> None:
    listed = runner.listing()
    for name, subject in subjects().items():
        assert callable(subject.module.run) and callable(subject.module.table), name
        assert subject.summary in listed and len(subject.summary) < 120, name


def test_options_are_the_parameters_of_run(subject: Subject, tmp_path: Path) -> None:
    given, told = options_of(subject, ["--data", str(tmp_path), "--count", "7", "--only", "a", "c", "--deep"])
    assert given == {"data": tmp_path, "count": 7, "only": ["a", "c"], "deep": True, "cache": None, "earlier": {}}
    assert not told.write and told.out is None


def test_a_wrong_choice_is_refused_and_the_right_ones_named(
    subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options_of(subject, ["--data", "data", "--only", "d"])
    assert "invalid choice: 'd' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize("name", subjects())
def test_every_subject_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options_of(find(name), ["--help"])
    assert ended.value.code == 0 and "--write" in capsys.readouterr().out


def test_the_data_folder_comes_from_the_environment_or_is_asked_for(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options_of(subject, [])
    assert "--data" in capsys.readouterr().err
    monkeypatch.setenv("DERMLENS_DATA", str(tmp_path))
    assert options_of(subject, [])[0]["data"] == tmp_path


def test_a_kept_command_names_no_path_of_this_machine(subject: Subject) -> None:
    words = ["--data", "data", "--out", "/home/someone/a.json", "--count", "3", "--write"]
    assert command_of(subject, words) == "python -m benchmarks counted --data DATA --count 3"


def test_write_keeps_the_result_with_its_machine_and_fills_the_regions(
    subject: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    runner.main(["counted", "--data", "here", "--count", "5", "--write"])
    assert capsys.readouterr().out == "| count | 5 |\n"
    record = json.loads(subject.result.read_text())
    assert record["found"]["count"] == 5 and record["subject"] == "counted"
    assert {"processor", "cores", "memory_gb", "system", "packages"} <= set(record["machine"])
    text = page.read_text()
    assert "\nold\n" not in text and "| count | 5 |\n\n*`python -m benchmarks counted --data DATA --count 5`: " in text
    assert "<!-- begin: counted.short -->\n5 in all\n<!-- end: counted.short -->\nafter\n" in text
    assert written(text) == text, "writing again changes nothing"
    runner.main(["counted", "--data", "here", "--count", "6", "--out", str(tmp_path / "out.json")])
    assert page.read_text() == text, "without --write no page changes"
    record = json.loads((tmp_path / "out.json").read_text())
    found = record["found"]
    assert record["command"] == "python -m benchmarks counted", "a part of the result is of the run before"
    assert record["last_part"].endswith("--count 6")
    assert found["count"] == 6 and found["before"]["count"] == 5, "an earlier result is given to the next run"


def test_only_the_regions_asked_for_are_written_and_bad_ones_are_named(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    with pytest.raises(SystemExit, match=r"counted has no result yet. Run: python -m benchmarks counted --write"):
        write_pages()
    assert write_pages(["other"]) == []
    subject.result.parent.mkdir(parents=True)
    subject.result.write_text(json.dumps({"found": {"count": 1}}))
    with pytest.raises(SystemExit, match=r"'counted.shorter' asks for a function"):
        region("counted.shorter")
    with pytest.raises(SystemExit, match="Did you mean counted"):
        region("countd")


def test_compare_fails_when_a_ratio_has_fallen_and_names_it(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "fresh", lambda call, name: SimpleNamespace(value=call(name)))
    with pytest.raises(SystemExit, match="counted has no short run to compare"):
        runner.compare(["counted"])
    subject.module.QUICK = {"ratio": 3.0}
    subject.module.run = lambda *, ratio: {"ratios": {"ours": {"median": ratio}, "new": {"median": 1.0}}}
    subject.result.parent.mkdir(parents=True)
    subject.result.write_text(json.dumps({"found": {"ratios": {"ours": {"median": 3.5}}}}))
    runner.compare([])
    assert "counted, new: 1.00 (committed: not measured)\n1 ratios compared, 0 below" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"ours: 3\.00, was 3\.50"):
        runner.compare(["counted", "--fall", "0.1"])


def test_the_machine_is_described() -> None:
    facts = machine()
    assert facts["cores"] >= 1 and facts["memory_gb"] > 0 and facts["packages"]["openvino"]


def test_a_fresh_process_gives_value_and_peak_and_its_failure_stops_the_measurement() -> None:
    found = fresh(memory_mb, "VmRSS")
    assert 5 < found.value <= found.peak_mb and found.seconds > 0
    with pytest.raises(SystemExit, match=r"benchmarks.fresh.memory_mb ended with status 1"):
        fresh(memory_mb, "nothing")
