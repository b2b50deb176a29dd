"""What a model is doing."""

CONDITIONS = ("starting", "standby", "replaying", "learning", "waiting", "halted", "stopped")
"""What a learner may be doing; ``waiting`` is for the log."""
