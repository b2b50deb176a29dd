"""Canonical texts: one value is one label and one category, however it was sent.

JSON ``1``, CSV ``1`` and Arrow ``1.0`` are one label, and ``007`` is another.
"""

import math
import re

INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
"""The canonical texts that are answered as integers."""


def canonical(value: bool | int | float | str) -> str:
    """Return the text of a label or category.

    >>> [canonical(value) for value in (1, 1.0, "1", "007", 0.5, True)]
    ['1', '1', '1', '007', '0.5', 'true']

    Raises:
        ValueError: the number is not finite.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return str(int(value)) if value == int(value) else repr(value)


def answered(text: str) -> str | int:
    """Return a label as answers show it: an integer if its text is one.

    >>> [answered(text) for text in ("1", "007", "churn")]
    [1, '007', 'churn']
    """
    return int(text) if INTEGER.fullmatch(text) and abs(int(text)) < 1 << 53 else text
