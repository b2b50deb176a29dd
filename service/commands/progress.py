"""The progress bar of long commands."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(examples: int, title: str) -> "tqdm[Any]":
    """Return a bar of so many examples; a line every half minute if there is no terminal."""
    every = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(total=examples, desc=title, unit=" examples", unit_scale=True, mininterval=every)
