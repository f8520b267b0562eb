"""A measured figure as text: one way for terminal, card and report.

What strangers wrote, made safe to print on a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def figure(value: Mapping[str, Any], digits: int = 3) -> str:
    """Return `0.712 [0.650, 0.771]`, the value alone where no interval can be told, or `n/a`."""
    if value["value"] is None:
        return "n/a"
    if value["low"] is None or value["high"] is None:
        return f"{value['value']:.{digits}f}"
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def one_line(value: object) -> str:
    """Return a text on one line, with what is not printable (line breaks, ESC, direction marks) as spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
