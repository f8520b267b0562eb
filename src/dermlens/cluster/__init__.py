"""The only part of dermlens that imports Ray: batches, features and trials on several machines."""
