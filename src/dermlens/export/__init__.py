"""A model for another runtime, written only when that runtime agrees with Keras."""
