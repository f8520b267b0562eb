"""How a model is made: split, pipeline, trunk, fine-tuning, export. The only part of dermlens that imports Keras."""
