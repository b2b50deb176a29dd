"""Values of cells as numbers, times, texts and truth values; each function finds wrong kinds.

Results depend on the value alone, not on its type in Arrow: 5, 5.0 and "5" are one number and one
category.
"""

import math
import re
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from service.fold.schema.cells import Cells, Indices
from streams.rows.names import canonical

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""Texts that are numbers: decimals, without spaces, names of infinities or underscores."""
TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?"
    r"(?:Z|([+-])([0-9]{2}):?([0-9]{2})?)?)?"
)
"""Texts that are times: ISO 8601, extended format. A time without an offset is UTC."""
TRUTH = {b"true": True, b"1": True, b"false": False, b"0": False}
"""Texts, in lower case, that are truth values; so are the numbers 1 and 0."""
SECOND = 1_000_000
DAY = 86_400 * SECOND
"""Microseconds of a day."""
EPOCH = date(1970, 1, 1).toordinal()


def distinct(values: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """Return the distinct values, and for each of the m values the index of its own.

    Returns:
        The k distinct values in order of first appearance; int32 [m].
    """
    found = values.dictionary_encode()
    return found.dictionary, found.indices.to_numpy()


def texts(values: pa.Array) -> list[bytes]:
    """Return the canonical text of each value, as UTF-8; times are in ISO 8601 and UTC."""
    if pa.types.is_floating(values.type):
        return [canonical(value).encode() for value in values.to_pylist()]
    if pa.types.is_timestamp(values.type):
        return [_iso(value) for value in values.cast(pa.int64()).to_pylist()]
    strings = values if pa.types.is_string(values.type) else values.cast(pa.string())
    return list(strings.view(pa.binary()).to_numpy(zero_copy_only=False))


def numbers(cells: Cells) -> tuple[Floats, Flags]:
    """Return the cells as numbers: a truth value is 0 or 1, and a text has to be a decimal.

    Returns:
        float64 [m]; bool [m], False where a cell is no number (and the float is NaN).
    """
    values = cells.values
    if pa.types.is_string(values.type):
        unique, codes = distinct(values)
        parsed = np.array([_number(text) for text in unique.to_pylist()], np.float64)[codes]
        return parsed, ~np.isnan(parsed)
    if pa.types.is_timestamp(values.type):
        return np.full(len(cells), np.nan), np.zeros(len(cells), np.bool_)
    found = values.to_numpy(zero_copy_only=False).astype(np.float64)
    return found, np.ones(len(cells), np.bool_)


def times(cells: Cells) -> tuple[Indices, Flags]:
    """Return the cells as times; a text has to be ISO 8601, and a number is no time.

    Returns:
        int64 [m], microseconds since 1970-01-01 UTC; bool [m], False where a cell is no time (and
        the integer is 0).
    """
    values = cells.values
    if pa.types.is_timestamp(values.type):
        return values.cast(pa.int64()).to_numpy(), np.ones(len(cells), np.bool_)
    if pa.types.is_string(values.type):
        unique, codes = distinct(values)
        moments = [_time(text) for text in unique.to_pylist()]
        known = np.array([moment is not None for moment in moments], np.bool_)
        return np.array([moment or 0 for moment in moments], np.int64)[codes], known[codes]
    return np.zeros(len(cells), np.int64), np.zeros(len(cells), np.bool_)


def truths(cells: Cells) -> tuple[Flags, Flags]:
    """Return the cells as truth values; texts and numbers are such as TRUTH has.

    Returns:
        bool [m]; bool [m], False where a cell is no truth value.
    """
    unique, codes = distinct(cells.values)
    found = [TRUTH.get(text.lower()) for text in texts(unique)]
    known = np.array([value is not None for value in found], np.bool_)
    return np.array([value is True for value in found], np.bool_)[codes], known[codes]


def age(microseconds: Indices) -> Floats:
    """Return the days from 2020-01-01 UTC to times: float64 [m]."""
    return microseconds.astype(np.float64) / DAY - (date(2020, 1, 1).toordinal() - EPOCH)


def _number(text: str) -> float:
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else math.nan


def _time(text: str) -> int | None:
    match = TIME.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = match.groups(
        default=""
    )
    at = [int(part or 0) for part in (hour, minute, second)]
    offset = [int(part or 0) for part in (hours, minutes)]
    if at[0] > 23 or max(at) > 59 or offset[0] > 23 or offset[1] > 59:
        return None
    try:
        days = date(int(year), int(month), int(day)).toordinal() - EPOCH
    except ValueError:
        return None
    shift = (offset[0] * 3_600 + offset[1] * 60) * (-1 if sign == "-" else 1)
    seconds = at[0] * 3_600 + at[1] * 60 + at[2] - shift
    return days * DAY + seconds * SECOND + int(fraction[:6].ljust(6, "0"))


def _iso(microseconds: int) -> bytes:
    seconds, rest = divmod(microseconds, SECOND)
    text = np.datetime_as_string(np.datetime64(seconds, "s"))
    return f"{text}.{rest:06}Z".encode() if rest else f"{text}Z".encode()
