"""What the commands share: options, exit codes, and the console that messages go to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from dermlens.errors import MissingExtraError, UsageError
from dermlens.text import console

EXIT_IMAGE_FAILED, EXIT_FINDINGS, EXIT_WRONG_USE, EXIT_INTERRUPTED = 1, 1, 2, 130

DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS = 20_000_000, 50_000_000  # as in data/images.py, which --help must not load

EngineName = Literal["local", "ray"]
Model = Annotated[str, typer.Option("--model", "-m", help="A name from `dermlens models`, a run or a bundle folder.")]
Reference = Annotated[
    Path | None,
    typer.Option(help="CSV with isic_id, isic2019_diagnosis and lesion_id: which lesion an ISIC image shows."),
]
MaxBytes = Annotated[int, typer.Option(min=1, help="Largest file, in bytes.")]
MaxPixels = Annotated[int, typer.Option(min=64, help="Largest width x height.")]
Images = Annotated[Path | None, typer.Option(help="Folder of the images that a table names.")]
FrameAspect = Annotated[
    float | None,
    typer.Option(
        help="Width / height of the camera frame, if the files were squeezed to another shape (ISIC-9: 1.333)."
    ),
]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster; by default one on this machine.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Ray workers; every core of the cluster by default.")]
Mix = Annotated[
    str | None,
    typer.Option(
        "--case-mix",
        metavar="equal|training|FILE",
        help="How common each diagnosis is beforehand; FILE: CSV or JSON of code and share. Default: the model's own.",
    ),
]
Views = Annotated[int, typer.Option(help="Average over 1, 2, 4 or 8 turned and mirrored views; each takes a pass.")]


def wants_ray(engine: EngineName, address: str | None, workers: int | None) -> bool:
    """Return whether Ray is wanted; UsageError where only its options are given, MissingExtraError without it."""
    if engine == "local":
        if address is not None or workers is not None:
            raise UsageError(
                "--address and --workers are options of Ray.", remedy="Add --engine ray, or leave them out."
            )
        return False
    need("scale", "ray")
    return True


def need(extra: str, *modules: str) -> None:
    """Stop unless the modules of an extra are installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"This command needs {', '.join(missing)}, which the light core does not install.",
            remedy=f'In the clone of dermlens run `{sys.executable} -m pip install -e ".[{extra}]"`.',
        )


def console_of_messages() -> Console:
    """Return the console for all that is not the result."""
    return console(stderr=True)
