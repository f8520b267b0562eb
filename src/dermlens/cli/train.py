"""`dermlens train`: a folder of labelled images -> a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dermlens.cli.options import (
    Address,
    EngineName,
    FrameAspect,
    Images,
    Mix,
    Reference,
    Workers,
    console_of_messages,
    need,
    wants_ray,
)
from dermlens.errors import UsageError

if TYPE_CHECKING:
    from dermlens.training.features import Engine
    from dermlens.training.recipe import Recipe


Task = Literal["as_is", "isic2019"]
FineTune = Literal["head", "top", "full"]
RecipeFile = Annotated[Path | None, typer.Option(help="TOML file of settings.")]
TaskOption = Annotated[Task, typer.Option(help="isic2019 maps the labels to its eight classes.")]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="WORD|PATH",
        help="pretrained (default: the backbone's own), imagenet, lite, none (random), a weights file, or the "
        "folder of an earlier run.",
    ),
]
Mode = Annotated[
    FineTune | None,
    typer.Option(help="What to train: the head, the top blocks, or the full network (default on a GPU)."),
]
Unfreeze = Annotated[
    int | None, typer.Option(min=1, metavar="BLOCK", help="Train from this block on; implies --fine-tune top.")
]
Devices = Annotated[
    str | None, typer.Option(metavar="N|all", help="GPUs that share each batch with --fine-tune full; default: all.")
]


def train(
    data: Annotated[
        Path, typer.Argument(help="Folder per class, Train/Test folders, CSV, HAM10000, ISIC or PAD-UFES-20.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    recipe: RecipeFile = None,
    backbone: Annotated[str | None, typer.Option(help="A name from `dermlens backbones`; default: lite0.")] = None,
    weights: Weights = None,
    fine_tune: Mode = None,
    unfreeze: Unfreeze = None,
    devices: Devices = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    views: Annotated[
        int | None, typer.Option(help="Augmented views per image to cache; 0: new ones in every epoch.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of split, views and training.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any recipe setting, as name=value.")] = None,
    case_mix: Mix = None,
    images: Images = None,
    reference: Reference = None,
    task: TaskOption = "as_is",
    frame_aspect: FrameAspect = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: the name of the run folder.")] = None,
    allow_leakage: Annotated[bool, typer.Option(help="Train although the split leaks; marks the model leaky.")] = False,
    no_neighbours: Annotated[
        bool, typer.Option("--no-neighbours", help="Do not store names of training images.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out at the step where it stopped or was killed.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the model of an earlier run in --out.")] = False,
    engine: Annotated[
        EngineName, typer.Option(help="What computes frozen features: this process, or Ray workers of one core each.")
    ] = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Train a model on a folder of labelled images; audits the data first."""
    need("train", "tensorflow", "sklearn", "matplotlib")
    features = _ray_features(address, workers) if wants_ray(engine, address, workers) else None
    if (out / "bundle").exists() and not overwrite and not resume:
        raise UsageError(
            f"{out} already holds a trained model. A run folder is not overwritten by default.",
            remedy="Choose another --out, or add --overwrite; --resume continues a run that was stopped.",
        )
    flags: dict[str, Any] = {"backbone": backbone, "weights": weights, "epochs": epochs, "views": views, "seed": seed}
    flags |= _blocks(fine_tune, unfreeze) | {"devices": device_count(devices), "case_mix": case_mix}
    console = console_of_messages()
    from dermlens.data.manifest import isic_ids_of_lesions, read_dataset
    from dermlens.training.recipe import make_recipe

    given = given_settings(recipe, settings or [], flags)
    given, earlier = _earlier_run(out, given) if resume else (given, {})
    chosen = make_recipe(given)
    check_network(chosen, out)
    dataset = read_dataset(data, images=images, reference=reference, task=task, frame_aspect=frame_aspect)
    console.print("Starting TensorFlow ...")
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    from dermlens.training.run import About
    from dermlens.training.run import train as run_training

    neighbours = not no_neighbours and bool(earlier.get("neighbours", True))
    run_training(
        dataset,
        out,
        chosen,
        About(name=name or earlier.get("name") or out.resolve().name, neighbours=neighbours),
        allow_leakage=allow_leakage or bool(earlier.get("allow_leakage")),
        resume=resume,
        overwrite=overwrite,
        console=console,
        isic_ids_of_lesion=isic_ids_of_lesions(reference) if reference else None,
        engine=features,
    )


def _ray_features(address: str | None, workers: int | None) -> Engine:
    from dermlens.cluster.features import ray_features

    check_address(address)
    return ray_features(address, workers)


def check_address(address: str | None) -> None:
    """Refuse an address without a Ray cluster before the data is read."""
    if address is not None:
        from dermlens.cluster.crew import check_that_somebody_listens

        check_that_somebody_listens(address)


def given_settings(recipe: Path | None, settings: list[str], flags: dict[str, Any]) -> dict[str, Any]:
    """Return all settings that were given: flags go before --set, and --set before the file."""
    from dermlens.training.recipe import parse_settings, read_recipe

    given = read_recipe(recipe) if recipe else {}
    given |= parse_settings(settings)
    given |= {k: v for k, v in flags.items() if v is not None}
    if given.get("fine_tune") == "head" and "epochs" in given:  # its only epochs are those of the head
        given.setdefault("head_epochs", given["epochs"])
    return given


def _blocks(fine_tune: FineTune | None, unfreeze: int | None) -> dict[str, Any]:
    """Return the recipe settings that --fine-tune and --unfreeze stand for."""
    if unfreeze is None:
        return {"fine_tune": fine_tune if fine_tune else None}
    if fine_tune not in (None, "top"):
        raise UsageError(
            f"--unfreeze goes with --fine-tune top; got --fine-tune {fine_tune}.",
            remedy="Leave one of the two out: head trains no block, full trains all of them.",
        )
    return {"fine_tune": "top", "cut_block": unfreeze - 1}


def device_count(devices: str | None) -> int | None:
    """Return the recipe setting that --devices stands for."""
    if devices is None or devices == "all":
        return None if devices is None else 0
    if not devices.isascii() or not devices.isdigit() or devices == "0":
        raise UsageError(
            f"--devices is {devices!r}. It takes a number from 1 up, or all.", remedy="For example --devices 2."
        )
    return int(devices)


def _earlier_run(out: Path, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings and notes of the run that --resume continues."""
    from dermlens.training.checkpoint import read_state
    from dermlens.training.recipe import FREE, make_recipe, read_recipe

    if not (out / "recipe.json").is_file():
        raise UsageError(
            f"--resume found no run in {out}.",
            remedy="Name the folder of the run as --out, or leave --resume out to start one.",
            code="nothing_to_resume",
        )
    saved, asked = read_recipe(out / "recipe.json"), make_recipe(given).as_dict()
    other = [name for name in given if name in saved and name not in FREE and asked[name] != saved[name]]
    if other:
        differ = ", ".join(f"{name} is {saved[name]!r}, got {asked[name]!r}" for name in other)
        raise UsageError(
            f"--resume continues with the settings of the run: {differ}.",
            remedy="Leave them out, or start a new run in another --out.",
        )
    return saved | {name: value for name, value in given.items() if name in FREE}, read_state(out)


def check_network(recipe: Recipe, out: Path) -> None:
    """Refuse a backbone, size or weights that cannot be had before the data is read and TensorFlow starts."""
    from dermlens.networks.family import backbone, check_size
    from dermlens.networks.weight_files import resolve_weights

    row = backbone(recipe.backbone)
    check_size(row, recipe.size_px)
    weights = resolve_weights(row, recipe.weights)
    if isinstance(weights, Path) and weights.resolve().parent == out.resolve():
        raise UsageError(
            f"The weights {weights} are in the run folder that is to be written.",
            remedy="Choose another --out; to continue a run that was stopped use --resume.",
        )
