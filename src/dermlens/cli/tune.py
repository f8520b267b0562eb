"""`dermlens tune`: a search for a better recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermlens.cli.options import (
    EXIT_INTERRUPTED,
    Address,
    EngineName,
    FrameAspect,
    Images,
    Reference,
    console_of_messages,
    need,
    wants_ray,
)
from dermlens.cli.train import RecipeFile, Task, TaskOption, check_address, check_network, given_settings


def tune(
    data: Annotated[Path, typer.Argument(help="Labelled images, in any layout that `train` reads.")],
    out: Annotated[Path, typer.Option(help="Folder for recipe.toml, trials.csv, study.db and the caches.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier calls included.")] = 20,
    timeout: Annotated[
        float | None, typer.Option(min=0.0, metavar="MINUTES", help="Stop this call after so many minutes.")
    ] = None,
    folds: Annotated[
        int, typer.Option(min=1, help="Trainings per trial; 1 scores on the select role alone: quick, but noisy.")
    ] = 3,
    recipe: RecipeFile = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A recipe setting as name=value; it is not varied.")
    ] = None,
    images: Images = None,
    reference: Reference = None,
    task: TaskOption = "as_is",
    frame_aspect: FrameAspect = None,
    allow_leakage: Annotated[bool, typer.Option(help="Search although the split leaks.")] = False,
    engine: Annotated[
        EngineName, typer.Option(help="One trial after the other in this process, or Ray workers with one each.")
    ] = "local",
    address: Address = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time on Ray; default: one per GPU, or one per four cores.")
    ] = None,
) -> None:
    """Search for a better recipe on the train and select images; the same command continues after a stop.

    What the recipe file and --set give is not varied.
    """
    need("tune", "tensorflow", "sklearn", "matplotlib", "optuna")
    on_ray: dict[str, Any] = {}
    if wants_ray(engine, address, workers):
        from dermlens.cluster.features import ray_features
        from dermlens.cluster.trials import ray_trials

        check_address(address)
        on_ray = {"engine": ray_features(address), "parallel": ray_trials(address, workers)}
    from dermlens.data.manifest import read_dataset
    from dermlens.training.recipe import make_recipe

    given = given_settings(recipe, settings or [], {})
    chosen = make_recipe(given)
    check_network(chosen, out)
    dataset = read_dataset(data, images=images, reference=reference, task=task, frame_aspect=frame_aspect)
    console = console_of_messages()
    console.print("Starting TensorFlow ...")
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    from dermlens.tuning.tune import Limits
    from dermlens.tuning.tune import tune as search

    whole = search(
        dataset,
        out,
        chosen,
        given,
        Limits(trials, None if timeout is None else 60 * timeout, folds),
        allow_leakage=allow_leakage,
        reading=reading_options(images, reference, task, frame_aspect),
        console=console,
        **on_ray,
    )
    raise typer.Exit(0 if whole else EXIT_INTERRUPTED)


def reading_options(images: Path | None, reference: Path | None, task: Task, frame_aspect: float | None) -> list[str]:
    """Return the options that say how the data is read, as `train` takes them; none that was left out."""
    values = {
        "--images": images,
        "--reference": reference,
        "--task": None if task == "as_is" else task,
        "--frame-aspect": frame_aspect,
    }
    return [word for name, value in values.items() if value is not None for word in (name, str(value))]
