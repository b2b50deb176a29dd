"""Sources outside the log: how far each of their partitions is in it."""
