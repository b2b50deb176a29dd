"""The progress bar of long tasks."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    title: str, examples: int | None = None, lines: Iterable[str] | None = None
) -> "tqdm[Any]":
    """Return a bar that shows a line every half minute if there is no terminal.

    Args:
        title: what takes long.
        examples: number of examples, if it counts them.
        lines: the lines of a file, which the bar then yields; it appears after a second, and goes
            with the last line.
    """
    unit, is_lasting, after = (" lines", False, 1.0) if lines else (" examples", True, 0.0)
    every = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(
        lines, title, examples, is_lasting, unit=unit, unit_scale=True, mininterval=every,
        delay=after,
    )  # fmt: skip
