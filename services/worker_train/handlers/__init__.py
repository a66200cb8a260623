"""Each kind of work: what its program is given, and what becomes of its result."""
