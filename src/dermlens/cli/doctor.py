"""`dermlens doctor`: what this machine offers."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dermlens import text
from dermlens.cli.options import EXIT_IMAGE_FAILED


def doctor(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Show what this machine offers, which models work and what is missing for which command."""
    from dermlens.inference.doctor import examine
    from dermlens.reporting.terminal import show_doctor

    facts = examine()
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))  # noqa: T201
    else:
        show_doctor(facts, text.console())
    raise typer.Exit(0 if facts["ok"] else EXIT_IMAGE_FAILED)
