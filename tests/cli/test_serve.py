"""`dermlens serve`: options that are refused before anything is served."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import tiny
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


def test_a_port_in_use_is_an_error_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit) as end:
            cli.main(["serve", "--model", str(tiny.write(tmp_path / "bundle")), "--port", str(taken.getsockname()[1])])
    assert end.value.code == 2
    assert "Cannot listen on 127.0.0.1" in capsys.readouterr().err
