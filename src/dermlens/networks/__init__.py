"""The EfficientNet family: facts, building, weights, and the OpenVINO graph of a network."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow loads; set it to 0 to see its log
