"""Drift of the served model: the detectors of changes, and the events that they give."""
