"""The token that `dermlens serve` is started with."""

from __future__ import annotations

import pytest

from dermlens import cli
from dermlens.cli.serve import _checked_token


@pytest.mark.parametrize("token", ["", " \n", "short", "pässword-long", "two words long"])
def test_a_token_that_protects_nothing_or_nobody_can_send_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    monkeypatch.setenv("DERMLENS_TOKEN", token)
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", "--model", "nowhere"])
    assert end.value.code == 2
    assert "The token h" in capsys.readouterr().err


def test_the_line_break_of_a_file_of_secrets_is_not_part_of_the_token() -> None:
    assert _checked_token("long-token\n") == "long-token"
    assert _checked_token(None) is None
