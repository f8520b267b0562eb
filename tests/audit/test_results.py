"""Results kept between audits: computed once for one content, and again for any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dermlens.audit.cache import contents_key, kept
from dermlens.audit.facts import ImageFacts
from dermlens.data.records import Record


def ask(folder: Path | None, key: str, calls: list[str]) -> list[int]:
    def compute() -> list[int]:
        calls.append(key)
        return [1, 2]

    return kept(folder, "numbers", key, compute, pack=list, unpack=list)


def test_computed_once_for_a_key(tmp_path: Path) -> None:
    calls: list[str] = []
    folder = tmp_path / "cache"
    assert [ask(folder, key, calls) for key in ("a", "a", "b", "a")] == [[1, 2]] * 4
    assert calls == ["a", "b", "a"] and [p.name for p in folder.iterdir()] == ["numbers.json"]
    assert ask(None, "a", calls) == [1, 2] and len(calls) == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "a"}', '{"key": "a", "result": 5}'])
def test_a_damaged_file_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "numbers.json").write_text(content)
    calls: list[str] = []
    assert ask(tmp_path, "a", calls) == [1, 2] and calls == ["a"]


def test_a_folder_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert ask(tmp_path / "file", "a", []) == [1, 2]


def test_the_key_follows_all_that_matters() -> None:
    record, fact = Record(Path("a"), "a", "NV", lesion_id="1"), ImageFacts("1" * 64)
    first = contents_key([record], [fact], "x")
    assert first == contents_key([replace(record, path=Path("elsewhere"))], [fact], "x")
    changes = ({"diagnosis": "MEL"}, {"lesion_id": "2"}, {"frame_aspect": 1.3}, {"image": "b"}, {"patient_id": "p"})
    others = {contents_key([replace(record, **change)], [fact], "x") for change in changes}  # type: ignore[arg-type]
    others |= {contents_key([record], [ImageFacts(None)], "x"), contents_key([record], [fact], "y")}
    assert len(others | {first}) == 8
