"""The log before what is trimmed, kept for replay."""
