"""The HTTP routes, a file each."""
