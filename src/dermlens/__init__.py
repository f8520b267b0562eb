"""dermlens: calibrated, explained classification of skin-lesion images. For research, never a diagnosis.

The public names load on first use, so that `import dermlens` and `dermlens --help` stay instant.
"""

from __future__ import annotations

import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    raise ImportError(
        "dermlens needs Python 3.11, 3.12 or 3.13: this is Python %d.%d. " % sys.version_info[:2]  # noqa: UP031
        + "Make an environment with one of those, for example `python3.12 -m venv .venv`."
    )

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dermlens.errors import DermlensError
    from dermlens.inference.answers import Answers
    from dermlens.inference.prediction import Prediction
    from dermlens.inference.predictor import Predictor

# OpenVINO sends usage statistics to a public service when it is imported. What reads patients' images sends nothing:
# without this module OpenVINO takes its own stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__version__ = "0.1.0"
__all__ = ["Answers", "DermlensError", "Prediction", "Predictor", "__version__"]

_HOMES = {
    "Answers": "dermlens.inference.answers",
    "DermlensError": "dermlens.errors",
    "Prediction": "dermlens.inference.predictor",
    "Predictor": "dermlens.inference.predictor",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dermlens' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
