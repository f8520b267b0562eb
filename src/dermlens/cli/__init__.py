"""The verbs, one module each; `app.py` puts them together."""

from dermlens.cli.app import main

__all__ = ["main"]
