"""`dermlens models` and `dermlens package`: which models are here, adding one, passing one on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermlens import text
from dermlens.errors import UsageError

if TYPE_CHECKING:
    from dermlens.bundle.bundle import Bundle

models = typer.Typer(help="List the models that are here, add one by name, remove one.", invoke_without_command=True)

AsJson = Annotated[bool, typer.Option("--json", help="As JSON, one object per line.")]


@models.callback()
def _list(context: typer.Context, as_json: AsJson = False) -> None:
    """List the embedded models and those that were added, what they read and how good they are."""
    if context.invoked_subcommand is not None:
        return
    from dermlens.bundle.bundle import MODELS_DIR, embedded_models, load_bundle, user_models, user_models_dir
    from dermlens.bundle.library import load_or_none
    from dermlens.reporting.terminal import show_models

    found = {name: load_bundle(MODELS_DIR / name) for name in embedded_models()}
    added = {name: load_or_none(user_models_dir() / name) for name in user_models()}
    found |= {name: bundle for name, bundle in added.items() if bundle is not None}
    if as_json:
        for name, bundle in found.items():
            print(json.dumps({**bundle.facts(), "name": name}, ensure_ascii=False))  # noqa: T201
    else:
        show_models(found, text.console())
    for name in added.keys() - found.keys():
        text.console(stderr=True).print(f"The added model {name!r} is damaged; add it again.", style="red")


@models.command(epilog="Example: `dermlens models add mine.dermlens.zip --sha256 3ced…`, then `predict --model NAME`")
def add(
    source: Annotated[
        str, typer.Argument(metavar="PATH|hf://OWNER/NAME", help="A package, a bundle or run folder, or a hub's model.")
    ],
    name: Annotated[str | None, typer.Option(help="What to call it; its own name by default.")] = None,
    sha256: Annotated[
        str | None, typer.Option(help="The SHA-256 that it must have, as its maker published it.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Replace another model of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a model, show what to know before trusting it, and add it under a name."""
    from dermlens.bundle.library import add_model, known_digests
    from dermlens.reporting.terminal import show_facts

    known = {} if sha256 is None else {sha256.strip().lower(): "it is the SHA-256 that was asked for"}
    facts: dict[str, Any] = {}
    console = text.console()

    def show(bundle: Bundle) -> None:
        facts.update(bundle.facts(), known={**known, **known_digests()}.get(bundle.sha256))
        if not as_json:
            console.print(text.one_line(f"{bundle.name} {bundle.version}"))
            unknown = "NO: compare the SHA-256 with what its maker published, by another way"
            show_facts(facts, console, {"known": facts["known"] or unknown})

    bundle = add_model(source, name=name, sha256=sha256, replace=replace, show=show)
    if as_json:
        print(json.dumps({**facts, "model": bundle.folder.name}, ensure_ascii=False))  # noqa: T201
    else:
        console.print(f"Added: dermlens predict IMAGE --model {bundle.folder.name}", soft_wrap=True)


@models.command()
def remove(name: Annotated[str, typer.Argument(help="A model that was added.")]) -> None:
    """Delete a model that was added."""
    from dermlens.bundle.library import remove_model

    text.console(stderr=True).print(f"Deleted {remove_model(name)}.", soft_wrap=True)


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
    from dermlens.bundle.library import ENDING, pack
    from dermlens.files import sha256_of_file

    if hub is not None and out is not None:
        raise UsageError("--out and --hub are two ways to write it.", remedy="Leave one of them out.")
    bundle = load_bundle(find_bundle(model))
    lines = ["It names its training images and lesions (neighbours.npz, seen.json)."] if bundle.has_examples else []
    digest = f"SHA-256 of the model: {bundle.sha256}"
    if hub is not None:
        write_repository(bundle, hub)
        lines += [f"Written: {hub}. Push it: hf upload OWNER/NAME {hub}", digest]
    else:
        path = out or Path(f"{bundle.name}-{bundle.version}{ENDING}".replace("/", "_"))
        pack(bundle, path)
        size_mb = path.stat().st_size / 1e6
        lines += [f"Written: {path} ({size_mb:.1f} MB, SHA-256 {sha256_of_file(path)})", digest]
        lines += [f"Elsewhere: dermlens models add {path.name} --sha256 {bundle.sha256}"]
    for line in lines:
        text.console().print(line, soft_wrap=True)
