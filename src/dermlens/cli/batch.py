"""`dermlens batch`: an answer for every image of a large collection, as a Parquet data set."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dermlens.cli.options import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_PIXELS,
    EXIT_IMAGE_FAILED,
    EXIT_INTERRUPTED,
    EXIT_WRONG_USE,
    Address,
    EngineName,
    FrameAspect,
    MaxBytes,
    MaxPixels,
    Mix,
    Model,
    Workers,
    console_of_messages,
    need,
    wants_ray,
)
from dermlens.errors import DermlensError, StorageError, UsageError

if TYPE_CHECKING:
    from dermlens.batch.job import Engine, Job, Progress, Summary

DEFAULT_PART_ROWS = 10_000  # as in batch/job.py, which --help must not load


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
    resume: Annotated[bool, typer.Option("--resume", help="Continue what --out holds; start if nothing.")] = False,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only the I-th of N shares of the inputs.")] = "1/1",
    part_rows: Annotated[int, typer.Option(min=1, help="Most rows in one part file.")] = DEFAULT_PART_ROWS,
    embedding: Annotated[bool, typer.Option("--embedding", help="Also save the embedding, float32.")] = False,
    images: Annotated[
        str | None,
        typer.Option(help="Folder or URL for the names in a table or list; by default the folder of the table."),
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="One process, or Ray workers of one core each.")] = "local",
    address: Address = None,
    workers: Workers = None,
    frame_aspect: FrameAspect = None,
    max_bytes: MaxBytes = DEFAULT_MAX_BYTES,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    case_mix: Mix = None,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Write JSON lines to stderr instead of messages for people.")
    ] = False,
    metrics: Annotated[
        Path | None, typer.Option(metavar="FILE.prom", help="Write a file for Prometheus's textfile collector.")
    ] = None,
) -> None:
    """Answer for any number of images: one row per input, failures included, in Parquet files.

    For research and decision support only; not a diagnosis.
    """
    with _errors_as_json(log_json):
        need("batch", "fsspec", "pyarrow", "tenacity")
        run = _engine(engine, address, workers)
        from dermlens.batch.job import Settings, open_job

        with open_job(
            inputs,
            out,
            model=model,
            settings=Settings(part_rows, embedding, max_bytes, max_pixels, case_mix),
            images=images,
            frame_aspect=frame_aspect,
            shard=_shard(shard),
            resume=resume,
        ) as job:
            summary = _run(job, run, log_json, metrics, shard)
    if not log_json:
        console_of_messages().print(_in_words(summary, out), soft_wrap=True)
    raise typer.Exit(0 if summary.finished else EXIT_INTERRUPTED)


def _run(job: Job, run: Engine | None, log_json: bool, metrics: Path | None, shard: str) -> Summary:
    """Run the job and report it: in words or as JSON, and as metrics where they are wanted."""
    from dermlens.batch.job import run_job
    from dermlens.batch.progress import Monitor, Status, show

    ledger, console = job.ledger, Console(quiet=True) if log_json else console_of_messages()
    labels = {"model": job.bundle.name, "version": job.bundle.version, "shard": shard}
    monitor = Monitor(sys.stderr if log_json else None, metrics, labels)
    status = Status(job.listing.weight, ledger.rows, ledger.errors, job.weight_done())
    for note in (*job.listing.notes, *ledger.notes):
        console.print(note, style="yellow", soft_wrap=True)
        monitor.log("note", text=note)
    if ledger.rows:
        console.print(f"Resuming after {ledger.rows:,} rows.")
    with monitor.watch(status):
        with show(status, console) as refresh:

            def report(done: Progress) -> None:
                status.add(done.rows, done.errors, done.weight)
                refresh()
                monitor.refresh(status)

            summary = run_job(job, run, report)
        status.name = "finished" if summary.finished else "interrupted"
        status.rows, status.errors = summary.new_rows, summary.errors - status.errors_before
    return summary


@contextmanager
def _errors_as_json(wanted: bool) -> Iterator[None]:
    """Write an error as a JSON line too, so that a log holds nothing else; the exit code is the same."""
    try:
        yield
    except DermlensError as error:
        if not wanted:
            raise
        from dermlens.batch.progress import Monitor

        Monitor(sys.stderr, None, {}).log("error", **error.as_dict())
        raise typer.Exit(EXIT_IMAGE_FAILED if isinstance(error, StorageError) else EXIT_WRONG_USE) from None


def _engine(name: EngineName, address: str | None, workers: int | None) -> Engine | None:
    if not wants_ray(name, address, workers):
        return None
    from dermlens.cluster.batch import ray_engine

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
        return f"Stopped: {rows} ({run}). To continue, add --resume to the same command."
    return f"{rows} ({run}). Read it with pandas.read_parquet({out!r})."
