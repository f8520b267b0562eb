"""`dermlens predict`: what an image shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermlens import text
from dermlens.cli.options import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_PIXELS,
    EXIT_IMAGE_FAILED,
    FrameAspect,
    MaxBytes,
    MaxPixels,
    Mix,
    Model,
    Views,
)
from dermlens.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from dermlens.inference.prediction import Prediction
    from dermlens.inference.predictor import Predictor

SHOW_PROGRESS_FROM = 100  # images


def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE_OR_FOLDER...", help="Images, or folders of them.")],
    model: Model = "default",
    top: Annotated[int, typer.Option(min=1, help="How many classes the page and a wide terminal show.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per image, one per line.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the answers as one HTML page with the images.")] = None,
    heatmap: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write a PNG per image: the evidence for its diagnosis.")
    ] = None,
    neighbours: Annotated[
        int | None, typer.Option(metavar="K", min=1, help="Also name the K most similar training lesions.")
    ] = None,
    case_mix: Mix = None,
    proven: Annotated[
        Path | None, typer.Option(help="CSV of image and diagnosis: also show what was proven, and what is right.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the HTML page in a browser.")] = False,
    frame_aspect: FrameAspect = None,
    max_bytes: MaxBytes = DEFAULT_MAX_BYTES,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    views: Views = 1,
) -> None:
    """Say what each image shows and what to do. `rejected`: do not rely on it; `error`: the file cannot be opened."""
    from dermlens.inference.inputs import expand
    from dermlens.inference.predictor import Predictor

    messages = text.console(stderr=True)
    _check_page(html, open_page)
    known = None
    if proven is not None:
        from dermlens.reporting.proven import read_proven

        known = read_proven(proven)
    inputs = expand(images)
    for note in inputs.notes:
        messages.print(note, style="yellow", soft_wrap=True)
    predictor = Predictor(model, max_bytes=max_bytes, max_pixels=max_pixels, views=views, case_mix=case_mix)
    if neighbours:
        predictor.bundle.examples()  # a model without them is refused before any work is done
    if views > 1:
        note = f"Probabilities are means over {views} views; thresholds and sets were fitted on one."
        messages.print(note, style="yellow", soft_wrap=True)
    answers, failed = [], False
    with _progress(len(inputs.paths), messages) as advance:
        for answer in _answers(predictor, inputs.paths, frame_aspect, heatmap):
            advance(1)
            failed = failed or answer.status == "error"
            if neighbours:
                answer = replace(answer, neighbours=predictor.neighbours(answer, neighbours))
            if as_json:
                print(json.dumps(answer.as_dict()), flush=True)  # noqa: T201
            if html is not None or not as_json:
                answers.append(answer)
    if not as_json:
        from dermlens.reporting.answers import show

        show(answers, predictor.bundle, top=top, console=text.console(), proven=known)
    if heatmap is not None:
        messages.print(f"Heat maps: {heatmap.resolve()}", soft_wrap=True)
    if html is not None:
        from dermlens.reporting.page import open_in_browser, write_page

        write_page(answers, predictor.bundle, html, top=top, proven=known)
        messages.print(f"Page: {html.resolve()}", soft_wrap=True)
        if open_page and not open_in_browser(html):
            messages.print("No browser found here; open that file in one.")
    raise typer.Exit(EXIT_IMAGE_FAILED if failed else 0)


def _answers(
    predictor: Predictor, paths: Sequence[str], frame_aspect: float | None, heatmap: Path | None
) -> Iterator[Prediction]:
    """Yield the answers; with `heatmap`, the map of each is written there first."""
    aspects = [frame_aspect] * len(paths)
    if heatmap is None:
        yield from predictor.predict_many(paths, frame_aspects=aspects)
        return
    from dermlens.inference.explain import HeatmapFolder

    folder = HeatmapFolder(heatmap)
    for answer, explanation in predictor.explain_many(paths, frame_aspects=aspects):
        yield answer if explanation is None else replace(answer, heatmap=str(folder.write(explanation)))


def _progress(count: int, messages: Console) -> AbstractContextManager[Callable[[int], None]]:
    """Show progress of many images on a terminal; for few its import would cost more than it shows."""
    if count < SHOW_PROGRESS_FROM or not messages.is_terminal:
        return nullcontext(lambda steps: None)
    from dermlens.reporting.progress import track

    return track("Predicting", count, messages)


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
