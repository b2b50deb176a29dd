"""Ways to run a step: compiled, traced, captured."""
