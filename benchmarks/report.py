"""What the tables of the subjects share: Markdown, ratios with their spread, pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from dermlens.bundle.bundle import Bundle
from dermlens.text import figure


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]], digits: int = 3) -> str:
    """Return a Markdown table; a figure or a spread (a mapping) is written with its interval."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(value, digits) for value in line) + " |" for line in lines)


def cell(value: Any, digits: int = 3) -> str:
    """Return a cell of a table: `0.71 [0.65, 0.77]` of a figure or a spread, anything else as it is."""
    if isinstance(value, Mapping):
        return figure(value if "value" in value else {"value": value["median"], **value}, digits)
    return str(value)


def ratio_table(ratios: Mapping[str, Mapping[str, float]], digits: int = 2) -> str:
    """Return the table of ratios, with goals where a ratio has one."""
    with_goals = any("goal" in ratio for ratio in ratios.values())
    header = ["ratio", "median [10th, 90th percentile]", *(["goal"] if with_goals else [])]
    rows = [[name, ratio, *([ratio.get("goal", "")] if with_goals else [])] for name, ratio in ratios.items()]
    return markdown(header, rows, digits)


def model_of(bundle: Bundle) -> dict[str, str]:
    """Return by what a result names the model that it was measured on."""
    return {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256}


def png(figure: Any, **settings: Any) -> bytes:
    """Return a Matplotlib figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, **settings)
    return file.getvalue()
