"""`dermlens batch`: an answer for every image of a large collection, as a Parquet data set."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from dermlens.cli.options import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_PIXELS,
    EXIT_INTERRUPTED,
    FrameAspect,
    MaxBytes,
    MaxPixels,
    Model,
    console_of_messages,
    need,
)
from dermlens.errors import UsageError

if TYPE_CHECKING:
    from dermlens.inference.batch import Engine, Summary

DEFAULT_PART_ROWS = 10_000  # as in inference/batch.py, which --help must not load


class EngineName(StrEnum):
    """What does the work."""

    local = "local"
    ray = "ray"


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Folder, glob, table (CSV, Parquet), list of names (.txt), tar shards, images; paths or fsspec URLs.",
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder or URL of the Parquet data set.")],
    model: Model = "default",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --out holds; start if nothing.")] = False,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only the I-th of N shares of the inputs.")] = "1/1",
    part_rows: Annotated[int, typer.Option(min=1, help="Most rows in one part file.")] = DEFAULT_PART_ROWS,
    embedding: Annotated[bool, typer.Option("--embedding", help="Also keep the embedding, float32.")] = False,
    images: Annotated[
        str | None, typer.Option(help="Folder or URL that names in a table or list are below; its own by default.")
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="One process, or Ray workers of one core each.")
    ] = EngineName.local,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; its own on this machine by default.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray workers; every core of the cluster by default.")
    ] = None,
    frame_aspect: FrameAspect = None,
    max_bytes: MaxBytes = DEFAULT_MAX_BYTES,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
) -> None:
    """Answer for any number of images; one row for every input, failures included, in Parquet files.

    For research and decision support only; not a diagnosis.
    """
    need("batch", "fsspec", "pyarrow")
    run = _engine(engine, address, workers)
    from dermlens.inference.batch import Settings, open_job, run_job
    from dermlens.reporting.batch_progress import track_batch

    console = console_of_messages()
    settings = Settings(part_rows, embedding, max_bytes, max_pixels)
    with open_job(
        inputs,
        out,
        model=model,
        settings=settings,
        images=images,
        frame_aspect=frame_aspect,
        shard=_shard(shard),
        resume=resume,
    ) as job:
        for note in (*job.listing.notes, *job.ledger.notes):
            console.print(note, style="yellow", highlight=False, soft_wrap=True)
        if job.ledger.rows:
            console.print(f"Going on after {job.ledger.rows:,} rows.", highlight=False)
        with track_batch(job.listing.weight, job.weight_done(), console) as advance:
            summary = run_job(job, run, lambda done: advance(done.rows, done.errors, done.weight))
    console.print(_in_words(summary, out), highlight=False, soft_wrap=True)
    raise typer.Exit(0 if summary.finished else EXIT_INTERRUPTED)


def _engine(name: EngineName, address: str | None, workers: int | None) -> Engine | None:
    if name is EngineName.local:
        if address is not None or workers is not None:
            raise UsageError("--address and --workers are of Ray.", remedy="Add --engine ray, or leave them out.")
        return None
    need("scale", "ray")
    from dermlens.inference.ray_batch import ray_engine

    return ray_engine(address, workers)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard is {text!r}. Allowed: 1/n, 2/n ... n/n.", remedy="For example --shard 3/8.")
    return int(match[1]), int(match[2])


def _in_words(summary: Summary, out: str) -> str:
    rate = summary.new_rows / max(1e-9, summary.seconds)
    failed = f", {summary.errors:,} of them failed (see error_code)" if summary.errors else ""
    rows = f"{summary.rows:,} rows{failed} in {summary.parts:,} part{'s' if summary.parts != 1 else ''} in {out}"
    run = f"this run: {summary.new_rows:,} in {summary.seconds:.0f} s, {rate:.0f} images/s"
    if not summary.finished:
        return f"Stopped: {rows} ({run}). To go on: the same command with --resume."
    return f"{rows} ({run}). Read it with pandas.read_parquet({out!r})."
