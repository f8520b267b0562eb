"""How good a model is, and what it knows of its own limits: metrics, intervals over lesions, fits and the report."""
