"""`dermlens audit`: what is wrong with a data set, and its repair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dermlens.cli.options import EXIT_FINDINGS, FrameAspect, Images, console_of_messages, need
from dermlens.errors import StorageError, UsageError, WeightsError

if TYPE_CHECKING:
    from dermlens.audit.embed import Embedder


def audit(
    data: Annotated[Path, typer.Argument(help="Labelled images, in any layout that `train` reads.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="CSV with isic_id, isic2019_diagnosis, lesion_id: its diagnoses and lesions are right."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another folder of pictures or table, with or without labels: what is shared?")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json and audit.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json instead of the summary.")] = False,
    fail_on: Annotated[
        list[str] | None, typer.Option(help="Exit 1 on findings of this kind, or of `any`; repeatable.")
    ] = None,
    repair: Annotated[bool, typer.Option(help="Write which images to use, with which label, to --manifest.")] = False,
    manifest: Annotated[Path | None, typer.Option(help="CSV file for the repair.")] = None,
    keep_train: Annotated[
        bool, typer.Option(help="Of a lesion in train and test use the training images, not those of the test.")
    ] = False,
    embedding: Annotated[
        bool,
        typer.Option(
            help="Compare images by an ImageNet network too: finds cropped and tilted copies, and likely label errors."
        ),
    ] = True,
    images: Images = None,
    frame_aspect: FrameAspect = None,
) -> None:
    """Find what is wrong with a data set before training, and repair what can be repaired."""
    need("train", "sklearn", "matplotlib")
    from dermlens.audit.repair import write_repair
    from dermlens.audit.report import print_audit, print_repair, write_audit, write_report
    from dermlens.audit.run import run_audit
    from dermlens.audit.verdict import as_json as json_text
    from dermlens.data.manifest import read_dataset, read_pictures

    kinds = failing_kinds(fail_on or [])
    if repair != (manifest is not None) or (keep_train and not repair):
        raise UsageError(
            "A repair needs both --repair and --manifest FILE; --keep-train changes a repair.",
            remedy="Add --repair --manifest repaired.csv.",
        )
    console = console_of_messages()
    dataset = read_dataset(data, images=images, reference=reference, frame_aspect=frame_aspect)
    other = read_pictures(against, reference=reference, classes=dataset.classes) if against is not None else None
    for note in [*dataset.notes, *(f"{against}: {note}" for note in (other.notes if other else ()))]:
        console.print(note, soft_wrap=True)
    if manifest is not None and dataset.origin is not None and manifest.resolve() == dataset.origin.resolve():
        raise UsageError(f"{manifest} is the data set itself.", remedy="Write the repair to another file.")
    embedder = _embedder(console) if embedding else None
    found = run_audit(dataset, reference=reference, against=other, embedder=embedder, console=console)
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
        console.print(f"Report: {out / 'audit.html'}, {out / 'audit.json'}", soft_wrap=True)
    if manifest is not None:
        print_repair(plan, manifest, dataset, console)
    raise typer.Exit(EXIT_FINDINGS if any(finding.kind in kinds for finding in found.findings) else 0)


def failing_kinds(names: Sequence[str]) -> frozenset[str]:
    """Return the kinds on which `--fail-on` fails; `any` means all of them."""
    from dermlens.audit.findings import KINDS

    unknown = [name for name in names if name not in (*KINDS, "any")]
    if unknown:
        raise UsageError(
            f"--fail-on {unknown[0]!r} is no kind of finding. Allowed: any, {', '.join(KINDS)}.",
            remedy="Choose one of them.",
        )
    return frozenset(KINDS if "any" in names else names)


def _embedder(console: Console) -> Embedder | None:
    """Return the ImageNet embedder; without it the audit continues, and one line says what is not searched."""
    from dermlens.audit.embed import Embedder
    from dermlens.networks.embedder import VERSION, embedder_graph

    try:
        return Embedder(embedder_graph(console), VERSION)
    except ModuleNotFoundError as error:
        why = f'{error.name} is missing (`pip install ".[train]"` brings it).'
    except (StorageError, WeightsError) as error:
        why = str(error)
    console.print(f"No search for cropped copies and label errors: {why}", soft_wrap=True)
    return None
