"""Processes that share the port with the learner's, take examples and answer."""
