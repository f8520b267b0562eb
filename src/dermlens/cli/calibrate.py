"""`dermlens calibrate`: the limits of a finished model, fitted again to a site's own lesions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermlens.cli.options import EXIT_IMAGE_FAILED, FrameAspect, Images, Reference, console_of_messages


def calibrate(
    model: Annotated[str, typer.Argument(help="A name from `dermlens models`, a run folder or a bundle folder.")],
    data: Annotated[Path, typer.Argument(help="The site's labelled images, in any layout that `train` reads.")],
    out: Annotated[Path, typer.Option(help="Folder of the new model.")],
    sensitivity: Annotated[
        float, typer.Option(metavar="0.5..0.999", help="Share of the malignant lesions that referral is to find.")
    ] = 0.95,
    case_mix: Annotated[
        str | None,
        typer.Option(metavar="equal|training|FILE", help="How common each class is; by default as the model has it."),
    ] = None,
    held_out: Annotated[
        float, typer.Option(metavar="0.1..0.9", help="Share of the lesions that is kept for the figures.")
    ] = 0.4,
    images: Images = None,
    reference: Reference = None,
    frame_aspect: FrameAspect = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: the name of the folder.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and of the intervals.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in --out.")] = False,
) -> None:
    """Fit temperature, sets, referral, novelty and quality limits to your own labelled lesions; nothing is trained.

    A part of the lesions is held out: on them the new limits stand beside those that the model came with.
    """
    from dermlens.bundle.bundle import find_bundle, load_bundle
    from dermlens.data.manifest import read_dataset
    from dermlens.diagnoses import ISIC2019
    from dermlens.evaluation.site import Wishes, check_place, fit_to_site

    wishes = Wishes(sensitivity, case_mix, held_out, name, seed, overwrite)
    wishes.check()
    bundle = load_bundle(find_bundle(model))
    check_place(out, bundle, overwrite=overwrite)
    repaired = reference is not None and set(bundle.codes) <= set(ISIC2019)
    dataset = read_dataset(
        data, images=images, reference=reference, task="isic2019" if repaired else "as_is", frame_aspect=frame_aspect
    )
    _, unreadable = fit_to_site(bundle, dataset, out, wishes, console=console_of_messages())
    raise typer.Exit(EXIT_IMAGE_FAILED if unreadable else 0)
