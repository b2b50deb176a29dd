"""Processes apart from the learner: what is published for them, and what they make of it."""
