"""How accurate dermlens is, and against what."""
