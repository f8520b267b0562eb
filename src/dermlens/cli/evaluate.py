"""`dermlens evaluate`: how good a model is on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermlens.cli.options import (
    EXIT_IMAGE_FAILED,
    FrameAspect,
    Images,
    Mix,
    Reference,
    Views,
    console_of_messages,
    need,
)


def evaluate(
    model: Annotated[str, typer.Argument(help="A name from `dermlens models`, a run folder or a bundle folder.")],
    data: Annotated[Path, typer.Argument(help="Labelled images, in any layout that `train` reads.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, metrics.json and predictions.csv.")],
    images: Images = None,
    reference: Reference = None,
    frame_aspect: FrameAspect = None,
    split: Annotated[str | None, typer.Option(help="Score only this part of the data: train or test.")] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also test the effect of ink, rulers, hair, light and a hidden lesion.")
    ] = False,
    views: Views = 1,
    case_mix: Mix = None,
    as_json: Annotated[bool, typer.Option("--json", help="Also print metrics.json.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Score a model on labelled images, without the lesions that it has seen.

    On images that the model was tested on in its training, it is compared with a linear probe and the most common
    class. With --reference, a model of the ISIC 2019 classes is scored against the reference's diagnoses.
    """
    need("train", "sklearn")
    from dermlens.data.manifest import read_dataset
    from dermlens.diagnoses import ISIC2019
    from dermlens.evaluation.evaluate import evaluate as run_evaluation
    from dermlens.inference.predictor import Predictor

    predictor = Predictor(model, views=views, case_mix=case_mix)
    repaired = reference is not None and set(predictor.bundle.codes) <= set(ISIC2019)
    dataset = read_dataset(
        data, images=images, reference=reference, task="isic2019" if repaired else "as_is", frame_aspect=frame_aspect
    )
    console = console_of_messages()
    failed = run_evaluation(predictor, dataset, out, split=split, seed=seed, console=console, controls=controls)
    if as_json:
        print((out / "metrics.json").read_text(encoding="utf-8"), end="")  # noqa: T201
    raise typer.Exit(EXIT_IMAGE_FAILED if failed else 0)
