"""What strangers wrote, made safe to print on a terminal."""

from __future__ import annotations


def one_line(value: object) -> str:
    """Return a text on one line, with what is not printable (line breaks, ESC, direction marks) as spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
