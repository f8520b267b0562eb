"""Figures and words for people: intervals, figures in one form, strangers' words made safe, and the console."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    from rich.console import Console

LOG_WIDTH = 140  # of a file that messages are written to


class Figure(TypedDict):
    """A measured value with its 95 % interval; null where the images cannot give it, and then `reason` says why."""

    value: float | None
    low: float | None
    high: float | None
    reason: NotRequired[str]
    note: NotRequired[str]


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a share, 0 to 1, of n cases (Wilson 1927); good for few cases and for 0 and 1."""
    z2 = 1.959964**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def figure(value: Mapping[str, Any], digits: int = 3) -> str:
    """Return `0.712 [0.650, 0.771]`, the value alone where there is no interval, or `n/a`."""
    if value["value"] is None:
        return "n/a"
    if value["low"] is None or value["high"] is None:
        return f"{value['value']:.{digits}f}"
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def percent(share: float, digits: int = 0) -> str:
    """Return a share as `28 %`; what is not zero is never shown as zero."""
    least = 0.5 * 10.0 ** -(digits + 2)
    return f"<{10.0**-digits:g} %" if 0 < share < least else f"{share * 100:.{digits}f} %"


def one_line(value: object) -> str:
    """Return a text on one line, with what is not printable (line breaks, ESC, direction marks) as spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def printable(name: str) -> str:
    """Return a file name with bytes that are no text shown as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'NAME'?` with the known name that is most like `name`, or nothing where none is."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.65)
    return f" Did you mean {found[0]!r}?" if found else ""


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is: no markup, no colours that are not asked for.

    Args:
        stderr: for messages, on stderr; results go to stdout.
    """
    from rich.console import Console

    width = LOG_WIDTH if stderr and not sys.stderr.isatty() else None
    return Console(stderr=stderr, width=width, highlight=False, markup=False)
