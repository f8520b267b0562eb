"""The verbs. Each imports its stage inside the command: `--help` is instant, predicting needs no TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dermlens.errors import DermlensError, MissingExtraError, StorageError, UsageError

SHOW_PROGRESS_FROM = 100
EXIT_IMAGE_FAILED, EXIT_FINDINGS, EXIT_WRONG_USE, EXIT_INTERRUPTED = 1, 1, 2, 130

DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS = 20_000_000, 50_000_000  # as in data/images.py, which --help must not load

app = typer.Typer(
    name="dermlens",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Classify images of skin disease with EfficientNet: train, evaluate, predict. "
    "For research and decision support only; not a diagnosis.",
)


class Task(StrEnum):
    """How source labels are read."""

    as_is = "as_is"
    isic2019 = "isic2019"


class FineTune(StrEnum):
    """How much of the network is trained."""

    head = "head"
    top = "top"
    full = "full"


Model = Annotated[str, typer.Option("--model", "-m", help="A name from `dermlens models`, a run or a bundle folder.")]
Reference = Annotated[
    Path | None,
    typer.Option(help="CSV with isic_id, isic2019_diagnosis and lesion_id; tells the lesions of ISIC images."),
]
MaxBytes = Annotated[int, typer.Option(min=1, help="Largest file, in bytes.")]
MaxPixels = Annotated[int, typer.Option(min=64, help="Largest width x height.")]
Images = Annotated[Path | None, typer.Option(help="Folder that holds the images which a table names.")]
FrameAspect = Annotated[
    float | None,
    typer.Option(
        help="Width / height of the camera frame, if the files were squashed to another shape (ISIC-9: 1.333)."
    ),
]


@app.command(epilog="Example: `dermlens predict examples/images --top 3`")
def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE_OR_FOLDER...", help="Images, or folders of them.")],
    model: Model = "default",
    top: Annotated[int, typer.Option(min=1, help="How many classes to show for each image.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, one for every input.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the answers as one HTML page with the images.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the HTML page in a browser.")] = False,
    frame_aspect: FrameAspect = None,
    max_bytes: MaxBytes = DEFAULT_MAX_BYTES,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
) -> None:
    """Say what each image shows, or why it cannot be read."""
    from dermlens.inference.inputs import expand
    from dermlens.inference.predict import Predictor

    stderr = Console(stderr=True)
    _check_page(html, open_page)
    inputs = expand(images)
    for note in inputs.notes:
        stderr.print(note, style="yellow", highlight=False, soft_wrap=True)
    predictor = Predictor(model, max_bytes=max_bytes, max_pixels=max_pixels)
    answers = []
    failed = False
    with _watched(len(inputs.paths), stderr) as advance:
        for answer in predictor.predict_many(inputs.paths, frame_aspects=[frame_aspect] * len(inputs.paths)):
            advance(1)
            failed = failed or answer.status == "error"
            if as_json:
                print(json.dumps(answer.as_dict()), flush=True)  # noqa: T201
            if html is not None or not as_json:
                answers.append(answer)
    if not as_json:
        from dermlens.reporting import terminal

        terminal.show(answers, predictor.bundle, top=top, console=Console())
    if html is not None:
        from dermlens.reporting.page import open_in_browser, write_page

        write_page(answers, predictor.bundle, html, top=top)
        stderr.print(f"Page: {html.resolve()}", highlight=False, soft_wrap=True)
        if open_page and not open_in_browser(html):
            stderr.print("No browser found here; open that file in one.", highlight=False)
    raise typer.Exit(EXIT_IMAGE_FAILED if failed else 0)


@app.command(epilog="Example: `dermlens audit my_images --out audit --repair --manifest repaired.csv`")
def audit(
    data: Annotated[Path, typer.Argument(help="Labelled images, in any layout that `train` reads.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="CSV with isic_id, isic2019_diagnosis, lesion_id: whose labels and lesions are right."),
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Another data set, to see what the two share.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json, audit.html and a cache.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json instead of the summary.")] = False,
    fail_on: Annotated[
        list[str] | None, typer.Option(help="Exit 1 when there are findings of this kind, or of `any`; repeatable.")
    ] = None,
    repair: Annotated[bool, typer.Option(help="Write which images to use, with which label, to --manifest.")] = False,
    manifest: Annotated[Path | None, typer.Option(help="CSV file that the repair is written to.")] = None,
    keep_train: Annotated[
        bool, typer.Option(help="Of a lesion in train and test keep the training images, not those of the test.")
    ] = False,
    images: Images = None,
    frame_aspect: FrameAspect = None,
) -> None:
    """Find what is wrong with a data set before a model learns it, and repair what can be repaired."""
    _need("train", "sklearn", "matplotlib")
    from dermlens.audit.audit import as_json as json_text
    from dermlens.audit.audit import run_audit, write_audit
    from dermlens.audit.findings import KINDS
    from dermlens.audit.repair import write_repair
    from dermlens.audit.report import failing, print_audit, print_repair, write_report
    from dermlens.data.manifest import read_dataset

    kinds = failing(fail_on or [], KINDS)
    if repair != (manifest is not None) or (keep_train and not repair):
        raise UsageError(
            "A repair needs both --repair and --manifest FILE; --keep-train changes a repair.",
            remedy="Add --repair --manifest repaired.csv.",
        )
    console = _console()
    dataset = read_dataset(data, images=images, reference=reference, frame_aspect=frame_aspect)
    for note in dataset.notes:
        console.print(note, highlight=False, soft_wrap=True)
    other = read_dataset(against, reference=reference) if against is not None else None
    if manifest is not None and dataset.origin is not None and manifest.resolve() == dataset.origin.resolve():
        raise UsageError(f"{manifest} is the data set itself.", remedy="Write the repair to another file.")
    cache = out / "cache" / "facts.npz" if out is not None else None
    found = run_audit(dataset, reference=reference, against=other, cache=cache, console=console)
    plan = found.repair(keep_train=keep_train)
    report = found.as_dict(plan if repair else None)
    if manifest is not None:
        write_repair(plan, manifest, dataset.root)
    if out is not None:
        write_audit(report, out / "audit.json")
        write_report(found, plan, out / "audit.html", manifest=manifest)
    if as_json:
        print(json_text(report), end="")  # noqa: T201
    else:
        print_audit(found, Console(soft_wrap=True))
    if out is not None:
        console.print(f"Report: {out / 'audit.html'}, {out / 'audit.json'}", highlight=False, soft_wrap=True)
    if manifest is not None:
        print_repair(plan, manifest, dataset, console)
    raise typer.Exit(EXIT_FINDINGS if any(finding.kind in kinds for finding in found.findings) else 0)


def _watched(count: int, stderr: Console) -> AbstractContextManager[Callable[[int], None]]:
    """Show progress where somebody looks and has to wait; a single image is answered without loading it."""
    if count < SHOW_PROGRESS_FROM or not stderr.is_terminal:
        return nullcontext(lambda steps: None)
    from dermlens.reporting.progress import track

    return track("Predicting", count, stderr)


def _check_page(html: Path | None, open_page: bool) -> None:
    """Refuse a page that cannot be written before any work is done for it."""
    if html is None:
        if open_page:
            raise UsageError("--open has no page to open.", remedy="Add --html FILE.")
        return
    if html.is_dir() or not html.parent.parent.is_dir():
        raise UsageError(
            f"--html {html} cannot be written: it must be a file, in a folder that exists or can be made in one.",
            remedy="Name a file, for example --html answers.html.",
        )


@app.command(epilog="Example: `dermlens train my_images --out runs/mine` (one folder per diagnosis)")
def train(
    data: Annotated[
        Path, typer.Argument(help="Folder per class, Train/Test folders, CSV, HAM10000, ISIC or PAD-UFES-20.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    recipe: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    backbone: Annotated[str | None, typer.Option(help="lite0 (default) or b0.")] = None,
    weights: Annotated[str | None, typer.Option(help="pretrained (default), a weights file, or none.")] = None,
    fine_tune: Annotated[
        FineTune | None,
        typer.Option(help="What is trained: the head, the top blocks, or the full network (default on a GPU)."),
    ] = None,
    unfreeze: Annotated[
        int | None, typer.Option(min=1, metavar="BLOCK", help="Train from this block on; implies --fine-tune top.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    views: Annotated[int | None, typer.Option(help="Augmented views of each image.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of split, views and training.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any recipe setting, as name=value.")] = None,
    images: Images = None,
    reference: Reference = None,
    task: Annotated[Task, typer.Option(help="isic2019 joins the labels to its eight classes.")] = Task.as_is,
    frame_aspect: FrameAspect = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; the run folder's by default.")] = None,
    allow_leakage: Annotated[bool, typer.Option(help="Train although the split leaks; marks the model leaky.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, at the step where it was stopped or killed.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the model of an earlier run in --out.")] = False,
) -> None:
    """Train a model on a folder of labelled images; audits the data first."""
    _need("train", "tensorflow", "sklearn", "matplotlib")
    if (out / "bundle").exists() and not overwrite and not resume:
        raise UsageError(
            f"{out} already holds a trained model. A run folder is not overwritten by default.",
            remedy="Choose another --out, or add --overwrite; --resume goes on with a run that was stopped.",
        )
    flags: dict[str, Any] = {"backbone": backbone, "weights": weights, "epochs": epochs, "views": views, "seed": seed}
    if fine_tune is not None or unfreeze is not None:
        flags["fine_tune"] = (fine_tune or FineTune.top).value
    if unfreeze is not None:
        flags["cut_block"] = unfreeze - 1
    console = _console()
    from dermlens.data.manifest import isic_ids_of_lesions, read_dataset
    from dermlens.training.recipe import make_recipe, parse_settings, read_recipe

    given = [
        read_recipe(recipe) if recipe else {},
        parse_settings(settings or []),
        {k: v for k, v in flags.items() if v is not None},
    ]
    if resume and any(given):
        raise UsageError(
            "--resume takes its settings from the run; others were given.",
            remedy="Leave --recipe, --set and the other settings out, or start a new run in another --out.",
        )
    chosen = make_recipe(read_recipe(out / "recipe.json") if resume else {})
    for part in given:
        chosen = make_recipe(part, base=chosen)
    dataset = read_dataset(data, images=images, reference=reference, task=task.value, frame_aspect=frame_aspect)
    console.print("Starting TensorFlow ...", highlight=False)
    from dermlens.training.quiet import load_tensorflow

    load_tensorflow()
    from dermlens.training.run import About
    from dermlens.training.run import train as run_training

    about = About(name=name or out.resolve().name)
    run_training(
        dataset,
        out,
        chosen,
        about,
        allow_leakage=allow_leakage,
        resume=resume,
        console=console,
        isic_ids_of_lesion=isic_ids_of_lesions(reference) if reference else None,
    )


@app.command(epilog="Example: `dermlens evaluate runs/mine other_images --out scores`")
def evaluate(
    model: Annotated[str, typer.Argument(help="A name from `dermlens models`, a run folder or a bundle folder.")],
    data: Annotated[Path, typer.Argument(help="Labelled images, in any layout that `train` reads.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json and predictions.csv.")],
    images: Images = None,
    reference: Reference = None,
    frame_aspect: FrameAspect = None,
    split: Annotated[str | None, typer.Option(help="Score only this part of the data: train or test.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Score a model on labelled images, leaving out every lesion that it has seen.

    With --reference, a model of the ISIC 2019 classes is scored against the reference's diagnoses.
    """
    _need("train", "sklearn")
    from dermlens.data.manifest import read_dataset
    from dermlens.diagnoses import ISIC2019
    from dermlens.evaluation.evaluate import evaluate as run_evaluation
    from dermlens.inference.predict import Predictor

    predictor = Predictor(model)
    repaired = reference is not None and set(predictor.bundle.codes) <= set(ISIC2019)
    dataset = read_dataset(
        data,
        images=images,
        reference=reference,
        task="isic2019" if repaired else "as_is",
        frame_aspect=frame_aspect,
    )
    failed = run_evaluation(predictor, dataset, out, split=split, seed=seed, console=_console())
    raise typer.Exit(EXIT_IMAGE_FAILED if failed else 0)


@app.command(epilog="Example: `dermlens models --json`")
def models(as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False) -> None:
    """List the embedded models, what they read and how good they are."""
    from dermlens.inference.bundle import MODELS_DIR, embedded_models, load_bundle
    from dermlens.reporting import terminal

    bundles = [load_bundle(MODELS_DIR / name) for name in embedded_models()]
    if as_json:
        for bundle in bundles:
            print(json.dumps(terminal.model_facts(bundle), ensure_ascii=False))  # noqa: T201
        return
    terminal.show_models(bundles, Console())


@app.command(epilog="Example: `dermlens doctor`")
def doctor(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Say what this machine offers, which models are sound and what is missing for which verb."""
    from dermlens.inference.doctor import examine
    from dermlens.reporting import terminal

    facts = examine()
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))  # noqa: T201
    else:
        terminal.show_doctor(facts, Console())
    raise typer.Exit(0 if facts["ok"] else EXIT_IMAGE_FAILED)


def _need(extra: str, *modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"This verb needs {', '.join(missing)}, which the light core does not install.",
            remedy=f'In the clone of dermlens run `pip install ".[{extra}]"`.',
        )


def _console() -> Console:
    return Console(stderr=True, width=None if sys.stderr.isatty() else 140)


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


if __name__ == "__main__":
    main()
