"""The log: entries, cuts, and who may write them; nothing else speaks to Redis."""
