"""The names of the streams, for help that must not wait for numpy; `catalog` has the streams."""

EXAMPLES = 60_000
"""Usual length of a stream."""
NAMES = (
    "abrupt", "recurring", "gradual", "permuted", "labels", "stationary",
    "sea", "agrawal", "hyperplane", "rbf", "led",
    "bananas", "phishing", "segments", "shuttle",
)  # fmt: skip
IMAGES = ("digits", "mnist")
"""Sources of images."""
