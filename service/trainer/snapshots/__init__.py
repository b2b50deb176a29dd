"""Snapshots of a model for processes that answer with it and do not learn."""
