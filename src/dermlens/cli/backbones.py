"""`dermlens backbones`: the EfficientNet family, to choose from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dermlens import text
from dermlens.cli.options import console_of_messages, need

if TYPE_CHECKING:
    from dermlens.networks.family import Backbone


def backbones(
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this backbone; repeatable.")] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure the time of one image here; takes minutes for the large ones.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Compare the networks that can be trained: size, cost, ImageNet accuracy and where their weights come from."""
    from dermlens.networks.family import BACKBONES, backbone

    rows = list(dict.fromkeys(backbone(name) for name in only or BACKBONES))
    took = _measured(rows) if latency else {}
    if as_json:
        for row in rows:
            print(json.dumps(_facts(row, took), ensure_ascii=False))  # noqa: T201
        return
    console = text.console()
    console.print(_table(rows, took))
    console.print(_NOTES, style="dim")
    if took:
        console.print("Latency: median of 20, one image, exported graph, float32, random weights, here.", style="dim")


_NOTES = (
    "Parameters and multiply-adds are those at the size shown, without the ImageNet classifier. Top-1 is the published "
    "ImageNet accuracy (keras.applications; Lite: the TensorFlow TPU repository). Weights: `lite` comes with the train "
    "extra, `imagenet` is downloaded by Keras when first used, and where there are none give a file or --weights none."
    "\nTrain one: dermlens train DATA --out RUN --backbone NAME"
)


def _measured(rows: list[Backbone]) -> dict[str, float]:
    need("train", "tensorflow")
    console = console_of_messages()
    console.print("Starting TensorFlow ...")
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    from dermlens.networks.openvino import measure_latencies

    return measure_latencies([row.name for row in rows], console)


_FIELDS: tuple[str, ...] = (
    "name",
    "title",
    "family",
    "input_size_px",
    "parameters",
    "multiply_adds",
    "embedding_size",
    "blocks",
)
_FIELDS += ("imagenet_top1", "top1_source", "weights", "weights_source", "licence", "scaling")


def _facts(row: Backbone, took: Mapping[str, float]) -> dict[str, Any]:
    facts = {name: getattr(row, name) for name in _FIELDS}
    facts |= {"licence": row.licence or None, "trained_interpolation": row.interpolation}
    return facts | ({"latency_ms": round(took[row.name], 2)} if took else {})


def _table(rows: list[Backbone], took: Mapping[str, float]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("name", style="bold", no_wrap=True)
    for title in ("input px", "parameters", "multiply-adds", "blocks", "top-1"):
        table.add_column(title, justify="right", no_wrap=True)
    if took:
        table.add_column("ms/image", justify="right", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    for row in rows:
        cells = [
            row.name,
            str(row.input_size_px),
            f"{row.parameters / 1e6:.1f} M",
            f"{row.multiply_adds / 1e9:.2f} G",
            str(row.blocks),
            f"{row.imagenet_top1:.1%}",
        ]
        cells += [f"{took[row.name]:.1f}"] if took else []
        table.add_row(*cells, row.weights or "-", row.licence or "-")
    return table
