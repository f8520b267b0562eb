"""How fast dermlens is, always as a ratio to what one would otherwise run."""
