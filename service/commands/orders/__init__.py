"""The commands with which an operator changes how a running service learns."""
