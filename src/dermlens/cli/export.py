"""`dermlens export`: a model for another runtime."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dermlens import text
from dermlens.cli.options import console_of_messages, need

if TYPE_CHECKING:
    from dermlens.export.export import Exported


FormatName = Literal["openvino", "onnx", "litert", "saved-model"]


def export(
    model: Annotated[str, typer.Argument(help="A run folder, a bundle folder, or a name from `dermlens models`.")],
    format_name: Annotated[FormatName, typer.Option("--format", "-f", help="The file's format.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write, a folder for a SavedModel; the model's name, here, by default.")
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option(help="Images, or folders of them, to compare on; the examples by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out.")] = False,
) -> None:
    """Write a model for another runtime, with classes, input and calibration inside the file.

    The file is loaded in a process of its own by its own runtime and compared with Keras on real images; one that
    disagrees is not written.
    """
    from dermlens.export.export import export as run_export

    say = partial(console_of_messages().print, soft_wrap=True)
    _tell(run_export(model, format_name, out, images=images or (), overwrite=overwrite, need=need, say=say))


def _tell(made: Exported) -> None:
    agreement = made.agreement
    each = ", ".join(f"{name} {value:.1e}" for name, value in agreement.outputs.items())
    for line in (
        f"{made.path}: {made.bytes / 1e6:.1f} MB, run by {made.runtime}",
        f"On {agreement.images} images, largest difference to {agreement.reference}, as a share of the largest value: "
        f"{agreement.worst:.1e} ({each})",
        f"Largest difference in a probability {agreement.probability:.1e}; "
        f"the same diagnosis for {agreement.same_diagnosis} of {agreement.images}",
        f"Inside: {', '.join(made.facts)}",
        made.facts["disclaimer"],
    ):
        text.console().print(line, soft_wrap=True)
