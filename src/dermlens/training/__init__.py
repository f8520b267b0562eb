"""How a model is made: split, pipeline, trunk, fine-tuning, export. The only part of dermlens that imports Keras."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow loads; set it to 0 to see its log
