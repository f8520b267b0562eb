"""A package, so that one browser serves all of it and is gone before other tests start event loops of their own."""
