"""Labels of a text file: compared as text, and numbered."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from itertools import groupby

import numpy as np
import numpy.typing as npt

MAX_CLASSES = 10_000
FEW = 100
"""Classes that a file may number with gaps: it may lack some."""
GAPS = 10
"""Classes for each label that is there, beyond which numbers are names, such as years."""


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,4})?")
_WHOLE = re.compile(r"0|[1-9][0-9]{0,8}")
_INFINITE = re.compile(r"[+-]?inf(inity)?")


@dataclass(frozen=True)
class Numbering:
    """A number for each of some labels."""

    numbers: npt.NDArray[np.int64]
    """The numbers from 0, in the order of the labels; two labels never share one."""
    names: tuple[str, ...]
    """The labels by number; empty if the numbers are what the labels say."""


def numbered(texts: Sequence[str]) -> Numbering:
    """Number labels that differ as text.

    Labels keep their numbers if all are whole numbers from 0 in the usual form (or all with ``.0``,
    as a column of floats is written), without large gaps. All other labels are names; they are
    numbered in the order of their values if all are whole numbers, otherwise of the alphabet.

    >>> numbered(["2", "0"]).numbers.tolist()
    [2, 0]
    >>> numbered(["2021", "2020"]).names
    ('2020', '2021')
    """
    plain = [text.removesuffix(".0") for text in texts]
    is_uniform = len({text.endswith(".0") for text in texts}) == 1
    if is_uniform and all(map(_WHOLE.fullmatch, plain)):
        values = [int(text) for text in plain]
        if max(values) < min(MAX_CLASSES, max(FEW, GAPS * len(values))):
            return Numbering(np.array(values, np.int64), ())
    numbers = [_value(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda k: (numbers[k] or 0, texts[k]))
    if any(value is None or not _is_whole(value) for value in numbers):
        order = sorted(range(len(texts)), key=texts.__getitem__)
    ranks = np.empty(len(texts), np.int64)
    ranks[order] = np.arange(len(texts))
    return Numbering(ranks, tuple(texts[k] for k in order))


def fraction(texts: Sequence[str]) -> str | None:
    """Return the first label that is no whole number if all are numbers, otherwise None.

    A column of such numbers is a quantity, not a class.
    """
    values = {text: _value(text) for text in texts if not _INFINITE.fullmatch(text.lower())}
    if None in values.values():
        return None
    return next(
        (t for t in texts if (value := values.get(t)) is None or not _is_whole(value)), None
    )


def lookalikes(texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Return groups of labels that a reader may take for one: ``1`` and ``1.0``, ``no`` and ``No``.

    >>> lookalikes(["7", "b", "007", "B", "c"])
    [('007', '7'), ('B', 'b')]
    """
    keyed = sorted((_look(text), text) for text in texts)
    groups = (tuple(text for _, text in group) for _, group in groupby(keyed, lambda one: one[0]))
    return [group for group in groups if len(group) > 1]


def _value(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text.lower()) else None


def _is_whole(value: Decimal) -> bool:
    return value == value.to_integral_value()


def _look(text: str) -> str:
    """Return what labels that look alike share."""
    same = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = "".join(letter for letter in same if unicodedata.category(letter) != "Cf")
    if (value := _value(seen)) is None:
        return seen
    return str(value.normalize(Context(prec=len(seen))) or 0)  # all digits, whatever the zeros
