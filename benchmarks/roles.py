"""The images of the embedded model, by the role that they had in its training."""

from __future__ import annotations

from pathlib import Path

from benchmarks import CONSOLE
from dermlens.bundle.bundle import MODELS_DIR, Bundle, load_bundle
from dermlens.evaluation.fit_trust import Labelled


def embedded_bundle() -> Bundle:
    """Return the bundle of the embedded model."""
    return load_bundle(MODELS_DIR / "default")


def embedded_roles(bundle: Bundle, data: Path) -> dict[str, Labelled]:
    """Return role -> images."""
    from scripts.default_model.dataset import default_dataset
    from scripts.default_model.facts import roles_of

    return roles_of(bundle, default_dataset(data, CONSOLE), CONSOLE)[0]
