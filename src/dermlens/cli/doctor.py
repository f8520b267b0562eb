"""`dermlens doctor` and `dermlens cache`: what this machine offers, and what dermlens keeps on it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dermlens import text
from dermlens.cli.options import EXIT_IMAGE_FAILED
from dermlens.errors import os_errors


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


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it; it is computed again when needed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Say where the cache is, how large it is and what it holds: numbers by content, no picture."""
    from dermlens.files import CACHE_MAX_BYTES, cache_folder, cache_sizes, clear_cache

    if clear:
        with os_errors(f"The cache in {cache_folder()} cannot be cleared", "Remove that folder yourself."):
            clear_cache()
    sizes = cache_sizes()
    total = sum(size for _, size in sizes.values())
    facts = {"folder": str(cache_folder()), "bytes": total, "max_bytes": CACHE_MAX_BYTES}
    facts["parts"] = {name: {"entries": count, "bytes": size} for name, (count, size) in sizes.items()}
    lines = [
        f"{'Cleared' if clear else 'Cache'}: {cache_folder()}",
        f"{total / 1e6:.1f} MB used; the oldest values are removed above {CACHE_MAX_BYTES / 1e6:,.0f} MB.",
        *(f"  {name}: {count} entries, {size / 1e6:.1f} MB" for name, (count, size) in sizes.items()),
        *([] if clear else ["`dermlens cache --clear` empties it."]),
    ]
    print(json.dumps(facts, ensure_ascii=False) if as_json else "\n".join(lines))  # noqa: T201
