"""Checkpoints in object storage, from which any machine can load them."""
