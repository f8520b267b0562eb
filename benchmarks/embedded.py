"""What the benchmarks of the embedded model share: its images, by the role that they had in its training."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from dermlens.evaluation.trust_fit import Labelled
from dermlens.inference.bundle import Bundle
from dermlens.training.default_model import default_dataset
from dermlens.training.refit import roles_of


def embedded_roles(bundle: Bundle, console: Console) -> dict[str, Labelled]:
    """Return role -> images, read from the folder that DERMLENS_DATA names."""
    data = os.environ.get("DERMLENS_DATA")
    if not data:
        raise SystemExit("Not run: it needs DERMLENS_DATA, the folder with ham10000/, isic9/ and isic_reference.csv.")
    return roles_of(bundle, default_dataset(Path(data), console), console)
