"""The names of the streams, for help that must not wait for numpy; `catalog` has those of dense
features, and `streams.made.named` those of rows."""

EXAMPLES = 60_000
"""Usual length of a stream."""
NAMES = (
    "abrupt", "recurring", "gradual", "permuted", "labels", "stationary",
    "sea", "agrawal", "hyperplane", "rbf", "led",
    "bananas", "phishing", "segments", "shuttle",
)  # fmt: skip
ENDLESS = (*NAMES[:11], "orders", "clicks")
"""Streams that are made, and go on for as long as they are read; `abrupt` turns again and again."""
ROW_NAMES = ("orders", "churn", "clicks")
"""Streams of rows with names, which are made up."""
DELAYED_NAMES = ("flights",)
"""Sets of rows whose labels come later than the rows."""
NUMBER_NAMES = ("trump_approval", "chick_weights", "water_flow")
"""Sets of river whose labels are numbers; rows with names."""
IMAGES = ("digits", "mnist")
"""Sources of images."""
WHICH_IS_THERE = "auto"
"""In place of a source: MNIST, or the digits where it cannot be fetched."""

STANDARD_INPUT = "-"
"""The name of a file that is standard input."""
LINED, ARROW, PARQUET = (".ndjson", ".jsonl"), (".arrow", ".feather"), (".parquet",)
"""Endings of files that hold rows with names and nothing else."""
