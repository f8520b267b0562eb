"""`dermlens models` and `dermlens doctor`: what is here."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from dermlens.cli.options import EXIT_IMAGE_FAILED


def models(as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False) -> None:
    """List the embedded models, what they read and how good they are."""
    from dermlens.inference.bundle import MODELS_DIR, embedded_models, load_bundle
    from dermlens.reporting import terminal

    bundles = [load_bundle(MODELS_DIR / name) for name in embedded_models()]
    if as_json:
        for bundle in bundles:
            print(json.dumps(terminal.model_facts(bundle), ensure_ascii=False))  # noqa: T201
        return
    terminal.show_models(bundles, Console())


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
