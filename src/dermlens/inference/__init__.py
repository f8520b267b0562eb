"""How a model is used: bundle, runtime, decision, prediction. Light: no TensorFlow, no scikit-learn."""
