"""The HTTP side of the service. Nothing here imports torch or redis."""
