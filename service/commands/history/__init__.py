"""The commands that look at what a service has learned before."""
