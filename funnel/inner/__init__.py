"""Inner optimizers."""
