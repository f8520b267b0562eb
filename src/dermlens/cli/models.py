"""`dermlens models` and `dermlens package`: which models are here, adding one, handing one on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dermlens.cli.options import console_of_messages
from dermlens.errors import UsageError

if TYPE_CHECKING:
    from dermlens.bundle.bundle import Bundle


models = typer.Typer(help="List the models that are here, add one by name, remove one.", invoke_without_command=True)

AsJson = Annotated[bool, typer.Option("--json", help="As JSON, one object a line.")]


@models.callback()
def _list(context: typer.Context, as_json: AsJson = False) -> None:
    """List the embedded models and those that were added, what they read and how good they are."""
    if context.invoked_subcommand is not None:
        return
    from dermlens.bundle.bundle import MODELS_DIR, embedded_models, load_bundle, user_models, user_models_dir
    from dermlens.bundle.library import load_or_none
    from dermlens.reporting import terminal

    bundles = [load_bundle(MODELS_DIR / name) for name in embedded_models()]
    added = {name: load_or_none(user_models_dir() / name) for name in user_models()}
    sound = {name: bundle for name, bundle in added.items() if bundle is not None}
    if as_json:
        for name, bundle in [*((b.name, b) for b in bundles), *sound.items()]:
            print(json.dumps({**terminal.model_facts(bundle), "name": name}, ensure_ascii=False))  # noqa: T201
    else:
        terminal.show_models(bundles, Console(), added=sound)
    for name in added.keys() - sound.keys():
        console_of_messages().print(
            f"The added model {name!r} is damaged; add it again.", style="red", highlight=False, markup=False
        )


@models.command(epilog="Example: `dermlens models add mine.dermlens.zip --sha256 3ced…`, then `predict --model NAME`")
def add(
    source: Annotated[
        str, typer.Argument(metavar="PATH|hf://OWNER/NAME", help="A packed file, a bundle or run folder, or a hub's.")
    ],
    name: Annotated[str | None, typer.Option(help="What to call it; its own name by default.")] = None,
    sha256: Annotated[
        str | None, typer.Option(help="The SHA-256 that it must have, as its maker published it.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Put it in the place of another model of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a model, show what to know before trusting it, and keep it under a name."""
    from dermlens.bundle.card_text import signature_lines
    from dermlens.bundle.library import add_model, known_digests
    from dermlens.bundle.packing import signature

    asked = {} if sha256 is None else {sha256.strip().lower(): "it is the SHA-256 that was asked for"}
    facts: dict[str, Any] = {}
    console = Console(soft_wrap=True)

    def show(bundle: Bundle) -> None:
        facts.update(signature(bundle, {**asked, **known_digests()}))
        for line in [] if as_json else signature_lines(facts):
            console.print(line, highlight=False, markup=False)

    bundle = add_model(source, name=name, sha256=sha256, replace=replace, show=show)
    if as_json:
        print(json.dumps({**facts, "model": bundle.folder.name}, ensure_ascii=False))  # noqa: T201
        return
    console.print(f"Added: dermlens predict IMAGE --model {bundle.folder.name}", highlight=False, markup=False)


@models.command()
def remove(name: Annotated[str, typer.Argument(help="A model that was added.")]) -> None:
    """Delete a model that was added."""
    from dermlens.bundle.library import remove_model

    console_of_messages().print(f"Deleted {remove_model(name)}.", highlight=False, markup=False, soft_wrap=True)


def package(
    model: Annotated[str, typer.Argument(help="A run folder, a bundle folder, or a name from `dermlens models`.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to write; NAME-VERSION.dermlens.zip by default.")
    ] = None,
    hub: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a folder for the Hugging Face hub instead, with its model card."),
    ] = None,
) -> None:
    """Write a model as one file, the same byte for byte each time, or as a folder for a hub."""
    from dermlens.bundle.bundle import find_bundle, load_bundle
    from dermlens.bundle.hub import write_repository
    from dermlens.bundle.packing import ENDING, pack
    from dermlens.files import sha256_of_file

    if hub is not None and out is not None:
        raise UsageError("--out and --hub are two ways to write it.", remedy="Leave one of them out.")
    bundle = load_bundle(find_bundle(model))
    console = Console(soft_wrap=True)
    if hub is not None:
        write_repository(bundle, hub)
        _say_names(bundle, console)
        console.print(f"Written: {hub}. Push it: hf upload OWNER/NAME {hub}", highlight=False, markup=False)
        console.print(f"SHA-256 of the model: {bundle.sha256}", highlight=False, markup=False)
        return
    path = out or Path(f"{bundle.name}-{bundle.version}{ENDING}".replace("/", "_"))
    pack(bundle, path)
    _say_names(bundle, console)
    size = path.stat().st_size / 1e6
    console.print(f"Written: {path} ({size:.1f} MB, SHA-256 {sha256_of_file(path)})", highlight=False, markup=False)
    console.print(f"SHA-256 of the model: {bundle.sha256}", highlight=False, markup=False)
    console.print(f"Elsewhere: dermlens models add {path.name} --sha256 {bundle.sha256}", highlight=False, markup=False)


def _say_names(bundle: Bundle, console: Console) -> None:
    """Tell who hands a model on that others will read names of training images in it."""
    if bundle.has_examples:
        console.print("It names its training images and lesions (neighbours.npz, seen.json).", highlight=False)
