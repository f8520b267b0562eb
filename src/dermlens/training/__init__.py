"""How a model is trained: recipe, split, views, features, network, steps, and the bundle at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dermlens.training.network import load_keras

__all__ = ["load_keras"]


def __getattr__(name: str) -> object:
    """Load `load_keras` on first use: some modules of this package are used without TensorFlow."""
    if name != "load_keras":
        raise AttributeError(f"module 'dermlens.training' has no attribute {name!r}")
    from dermlens.training.network import load_keras

    return load_keras
