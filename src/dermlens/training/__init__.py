"""How a model is made: split, views, features, network, training, bundle; `run.train` is the whole."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dermlens.training.network import load_keras

__all__ = ["load_keras"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow loads; set it to 0 to see its log


def __getattr__(name: str) -> object:
    """Load `load_keras` on first use: some modules of this package are used without TensorFlow."""
    if name != "load_keras":
        raise AttributeError(f"module 'dermlens.training' has no attribute {name!r}")
    from dermlens.training.network import load_keras

    return load_keras
