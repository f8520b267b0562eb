"""The words of the page: each is used, each used one is there, and each placeholder gets its value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dermlens import serving

STATIC = Path(serving.__file__).parent / "static"
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in STATIC.iterdir() if path.suffix in (".js", ".html"))
USED = set(re.findall(r"\bS\.(\w+(?:\.[a-z]\w*)*)", SOURCES)) | set(re.findall(r'data-(?:s|label)="([\w.]+)"', SOURCES))
LOOKED_UP = set(re.findall(r"\bS\.([\w.]+)\[", SOURCES))  # S.result.kinds[kind] uses all words below
CATALOGUES = sorted(STATIC.glob("words.*.json"))


def words_in(catalogue: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in catalogue.items():
        if isinstance(value, dict):
            yield from words_in(value, f"{path}{key}.")
        else:
            yield path + key, value


@pytest.fixture(params=CATALOGUES, ids=lambda path: path.name)
def words(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(words_in(json.loads(request.param.read_text(encoding="utf-8"))))


def test_every_word_is_used_and_every_used_word_is_there(words: dict[str, Any]) -> None:
    assert len(words) > 100 and LOOKED_UP
    looked_up = {path for path in words if path.rpartition(".")[0] in LOOKED_UP}
    assert set(words) - looked_up == USED - LOOKED_UP


def test_every_placeholder_gets_its_value(words: dict[str, Any]) -> None:
    """Wherever a text with placeholders is used, `fill` gives all of them and no other."""
    with_placeholders = 0
    for path, text in words.items():
        names = set(re.findall(r"\{(\w+)\}", str(text)))
        uses = re.findall(rf"\bS\.{re.escape(path)}\b", SOURCES)
        given = re.findall(rf"\bfill\(S\.{re.escape(path)}, \{{ (.*?) \}}\)", SOURCES)
        assert len(given) == (len(uses) if names else 0), path
        for values in given:
            assert set(re.findall(r"(?:^|, )(\w+)(?=[:,]|$)", values)) == names, path
        with_placeholders += bool(names)
    assert with_placeholders > 15
    assert re.findall(r"\bfill\((?!S\.)", SOURCES) == []


def test_a_catalogue_is_json_for_the_browser(client: Any) -> None:
    for path in CATALOGUES:
        response = client().get(f"/static/{path.name}")
        assert response.headers["content-type"] == "application/json" and response.json()["lang"] in path.name
    assert "connect-src 'self'" in response.headers["content-security-policy"]  # the page fetches it
