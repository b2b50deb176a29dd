"""The trainer: it reads the log, cuts and records batches, learns them and keeps checkpoints."""
