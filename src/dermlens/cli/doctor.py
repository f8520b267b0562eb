"""`dermlens doctor`: what this machine offers."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from dermlens.cli.options import EXIT_IMAGE_FAILED


def doctor(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Say what this machine offers, which models are sound and what is missing for which verb."""
    from dermlens.inference.doctor import examine
    from dermlens.reporting import terminal

    facts = examine()
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))  # noqa: T201
    else:
        terminal.show_doctor(facts, Console())
    raise typer.Exit(0 if facts["ok"] else EXIT_IMAGE_FAILED)
