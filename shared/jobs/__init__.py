"""Jobs: work that must reach exactly one end, whatever dies on the way."""
