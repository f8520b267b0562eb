"""The command line. Each command imports its stage when it runs, so `--help` is quick and predicting stays light."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from dermlens.cli.audit import audit
from dermlens.cli.backbones import backbones
from dermlens.cli.batch import batch
from dermlens.cli.calibrate import calibrate
from dermlens.cli.doctor import cache, doctor
from dermlens.cli.evaluate import evaluate
from dermlens.cli.export import export
from dermlens.cli.models import models, package
from dermlens.cli.options import EXIT_IMAGE_FAILED, EXIT_INTERRUPTED, EXIT_WRONG_USE
from dermlens.cli.predict import predict
from dermlens.cli.serve import serve
from dermlens.cli.train import train
from dermlens.cli.tune import tune
from dermlens.errors import DermlensError, StorageError

app = typer.Typer(
    name="dermlens",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Classify images of skin disease with EfficientNet: train, evaluate, predict, serve. "
    "For research and decision support only; not a diagnosis.",
)

for _command, _example in (
    (predict, "`dermlens predict examples/images --top 3`"),
    (batch, "`dermlens batch my_images --out answers`, and after a stop the same with `--resume`"),
    (serve, "`dermlens serve --open`"),
    (audit, "`dermlens audit my_images --out audit --repair --manifest repaired.csv`"),
    (train, "`dermlens train my_images --out runs/mine` (one folder per diagnosis)"),
    (tune, "`dermlens tune my_images --out search --trials 20`, then `train --recipe search/recipe.toml`"),
    (evaluate, "`dermlens evaluate runs/mine other_images --out scores`"),
    (calibrate, "`dermlens calibrate default clinic.csv --out models/clinic`"),
    (export, "`dermlens export runs/mine --format onnx`"),
    (backbones, "`dermlens backbones --only lite0 --only b0 --latency`"),
    (package, "`dermlens package runs/mine --out mine.dermlens.zip`"),
    (doctor, "`dermlens doctor`"),
    (cache, "`dermlens cache`, `dermlens cache --clear`"),
):
    app.command(epilog=f"Example: {_example}")(_command)
app.add_typer(models, name="models", epilog="Example: `dermlens models --json`, `dermlens models add PATH`")


def _version(value: bool) -> None:
    if value:
        from dermlens import __version__

        print(f"dermlens {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main(argv: list[str] | None = None) -> Any:
    """Run the command line; a person's mistake ends in one line and an exit code, never in a traceback."""
    try:
        return app(args=argv)
    except DermlensError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(EXIT_IMAGE_FAILED if isinstance(error, StorageError) else EXIT_WRONG_USE) from None
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)  # noqa: T201
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
