"""The log: entries, cuts, and the right to record them. No other package uses Redis."""
