"""Columns from the cells of a text with delimiters, which do not tell their kinds.

The canonical text of a cell does not depend on the other rows of a request: a number or a boolean
among words has the text that it has among numbers.
"""

import math
import re
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.batch import InvalidBatchError
from streams.rows.bounds import EXACT, SHOWN, check_texts
from streams.rows.names import canonical
from streams.rows.times import TIME
from streams.sources.faults import MISSING, label_fault

WHOLE = "-?(0|[1-9][0-9]*)"
NUMBER = rf"({WHOLE}([.][0-9]*)?|-?[.][0-9]+)([eE][+-]?[0-9]+)?"
BOOLEAN = "[tT]rue|TRUE|[fF]alse|FALSE"
INFINITE = "[+-]?([iI]nf|INF)([iI]nity|INITY)?"
DATE_TIME = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.,][0-9]{1,9})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
"""Dates and times of ISO 8601."""
VALUES = pa.array(sorted(MISSING), pa.string())
_WHOLE, _NUMBER, _BOOLEAN, _INFINITE = map(re.compile, (WHOLE, NUMBER, BOOLEAN, INFINITE))


def column(name: str, cells: pa.StringArray, comma: bool = False) -> pa.Array:
    """Return a column of one of `streams.rows.rows.TYPES`, [n].

    A column holds numbers, booleans or times only if all cells that are not missing do. Integers
    beyond ±2^53 make it a column of texts, which are exact.

    Args:
        name: of the column.
        cells: pa.string() [n].
        comma: whether a comma is a decimal point, as in most files with semicolons.

    Raises:
        InvalidBatchError: a cell among numbers is infinite, or numbers have points and commas.
    """
    check_texts(name, cells)
    cells = pc.utf8_trim_whitespace(cells)
    cells = pc.if_else(pc.is_in(cells, VALUES), pa.scalar(None, pa.string()), cells)
    if cells.null_count == len(cells):
        return pa.nulls(len(cells))
    if comma:
        cells = _with_points(name, cells)
    is_number = _matches(cells, NUMBER)
    if _all(is_number):
        return _numbers(name, cells, is_number)
    is_boolean = _matches(cells, BOOLEAN)
    if _all(is_boolean):
        return pc.utf8_lower(cells).cast(pa.bool_())
    if _all(pc.or_(is_number, is_infinite := _matches(cells, INFINITE))):
        raise _not_finite(name, cells, pc.index(is_infinite, True).as_py())
    if _all(_matches(cells, DATE_TIME)) and (times := _times(cells)) is not None:
        return times
    return _texts(cells, pc.or_(is_number, is_boolean))


def labels(name: str, cells: pa.StringArray, comma: bool = False) -> pa.StringArray:
    """Return the canonical texts of labels, [n]; arguments as for `column`.

    Raises:
        InvalidBatchError: a label is missing, or is none.
    """
    check_texts(name, cells)
    coded = pc.utf8_trim_whitespace(cells).dictionary_encode()
    found: list[str] = coded.dictionary.to_pylist()
    for code, text in enumerate(found):
        is_sign = text == "-" and "+" in found
        fault = "" if is_sign else label_fault(text)
        if not _is_finite(text):
            fault = f"the label {text!r} is not finite"
        if fault:
            index = pc.index(coded.indices, pa.scalar(code, coded.indices.type)).as_py()
            raise InvalidBatchError(fault, name, index)
    if comma:
        found = [_pointed(text) for text in found]
    return pa.array([*map(_canonical, found)], pa.string()).take(coded.indices)


def _is_finite(text: str) -> bool:
    if _INFINITE.fullmatch(text):
        return False
    return not _NUMBER.fullmatch(text) or math.isfinite(float(text))


def _canonical(text: str) -> str:
    """Return the canonical text of one cell."""
    if _BOOLEAN.fullmatch(text):
        return text.lower()
    if not _NUMBER.fullmatch(text):
        return text
    if _WHOLE.fullmatch(text):
        return "0" if text == "-0" else text
    return canonical(float(text)) if _is_finite(text) else text


def _texts(cells: pa.StringArray, is_other: pa.BooleanArray) -> pa.StringArray:
    """Return texts, with the canonical ones of numbers and booleans among them."""
    is_other = is_other.fill_null(False)
    texts = pa.array([*map(_canonical, cells.filter(is_other).to_pylist())], pa.string())
    return pc.replace_with_mask(cells, is_other, texts)


def _numbers(name: str, cells: pa.StringArray, is_number: pa.BooleanArray) -> pa.Array:
    """Return integers or floats, or texts if an integer is beyond ±2^53."""
    is_whole = _matches(cells, WHOLE)
    try:
        integers = cells.filter(is_whole).cast(pa.int64())
    except pa.ArrowInvalid:
        return _texts(cells, is_number)
    if len(integers) and not _is_exact(integers):
        return _texts(cells, is_number)
    if _all(is_whole):
        return cells.cast(pa.int64())
    numbers = cells.cast(pa.float64())
    values = numbers.to_numpy(zero_copy_only=False)
    if (is_infinite := np.isinf(values)).any():
        raise _not_finite(name, cells, int(is_infinite.argmax()))
    return numbers


def _is_exact(integers: pa.Int64Array) -> bool:
    ends = pc.min_max(integers)
    return bool(ends["min"].as_py() >= -EXACT and ends["max"].as_py() <= EXACT)


def _times(cells: pa.StringArray) -> pa.Array | None:
    """Return times, rounded down to microseconds, or None if the calendar lacks one."""
    try:
        times = [None if text is None else _time(text) for text in cells.to_pylist()]
    except (ValueError, OverflowError):
        return None
    return pa.array(times, TIME)


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _with_points(name: str, cells: pa.StringArray) -> pa.StringArray:
    """Return cells with points in numbers that have commas.

    Raises:
        InvalidBatchError: all cells are numbers, and some have points.
    """
    pointed = pc.replace_substring(cells, ",", ".")
    is_number = _matches(pointed, NUMBER)
    has_comma = pc.and_(is_number, pc.match_substring(cells, ","))
    if not pc.any(has_comma).as_py():
        return cells
    has_point = pc.match_substring(cells, ".")
    if _all(is_number) and pc.any(has_point).as_py():
        index = pc.index(has_point, True).as_py()
        raise InvalidBatchError(
            f"{cells[index].as_py()[:SHOWN]!r} has a point, and other numbers of the column have "
            "commas; write decimal points only",
            name,
            index,
        )
    return pc.if_else(has_comma, pointed, cells)


def _pointed(text: str) -> str:
    pointed = text.replace(",", ".")
    return pointed if _NUMBER.fullmatch(pointed) else text


def _not_finite(name: str, cells: pa.StringArray, index: int) -> InvalidBatchError:
    return InvalidBatchError(
        f"{cells[index].as_py()[:SHOWN]!r} is not a finite number; replace it, or leave the cell "
        "empty",
        name,
        index,
    )


def _matches(cells: pa.StringArray, form: str) -> pa.BooleanArray:
    """Return which cells have a form; those that are missing are null."""
    return pc.match_substring_regex(cells, rf"\A({form})\z")


def _all(matches: pa.BooleanArray) -> bool:
    """Return whether all cells that are not missing match."""
    return bool(pc.all(matches).as_py())
