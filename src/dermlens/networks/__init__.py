"""The EfficientNet family: facts, building, weights, and the OpenVINO graph of a network."""
