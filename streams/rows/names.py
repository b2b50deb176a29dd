"""Canonical texts: one value is one label and one category, however it was sent.

JSON ``1``, CSV ``1`` and Arrow ``1.0`` are one label, and ``007`` is another.
"""

import math
import re

INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"-?[0-9]+([.][0-9]+)?(e-?[0-9]+)?")
"""The canonical texts that are answered as numbers, if they are those of numbers."""
BOOLEANS = {"true": True, "false": False}


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


def answered(text: str) -> bool | int | float | str:
    """Return a label as answers show it: the boolean or number whose canonical text it is.

    >>> [answered(text) for text in ("1", "007", "churn", "true", "0.1", "1.0")]
    [1, '007', 'churn', True, 0.1, '1.0']
    """
    if text in BOOLEANS:
        return BOOLEANS[text]
    if INTEGER.fullmatch(text):
        return int(text) if abs(int(text)) < 1 << 53 else text
    if FLOAT.fullmatch(text) and math.isfinite(value := float(text)) and canonical(value) == text:
        return value
    return text
