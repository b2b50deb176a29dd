"""Columns from the values of JSON, of which one column may hold several kinds."""

from collections.abc import Sequence

import pyarrow as pa

from streams.batch import InvalidBatchError
from streams.rows.bounds import EXACT, SHOWN
from streams.rows.labels import kind_name
from streams.rows.names import canonical


class Digits(str):
    """The digits of an integer that int64 cannot hold."""


NUMBERS = {int, float}
SCALARS = {bool, int, float, str, Digits}


class InexactError(ValueError):
    """A float may have been an integer beyond 64 bits, whose digits the parser lost."""


def column(name: str, values: Sequence[object], is_exact: bool = False) -> pa.Array:
    """Return a column of one of `streams.rows.rows.TYPES`, [n].

    Integers and floats become float64. All other mixtures become canonical texts, and so do columns
    with an integer beyond ±2^53, whose digits float64 would lose.

    Args:
        name: of the column, for messages.
        values: of JSON, one a row; None where it is missing.
        is_exact: whether integers beyond 64 bits are `Digits`, not floats.

    Raises:
        InexactError: a float may have been an integer, and they are not exact.
        InvalidBatchError: a value is a list or an object.
    """
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    if kinds == {str}:
        return pa.array(values, pa.string())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and (integers := _integers(values)) is not None:
        return integers
    if not kinds <= SCALARS:
        index = next(k for k, v in enumerate(values) if v is not None and type(v) not in SCALARS)
        raise InvalidBatchError(
            f"column {name[:SHOWN]!r} holds {kind_name(values[index])}; send numbers, strings, "
            "booleans or null, and each part of a nested value as a column of its own",
            name,
            index,
        )
    if not is_exact and float in kinds:
        check_exact(values)
    if kinds <= NUMBERS and not (int in kinds and any(map(_is_large, values))):
        return pa.array(values, pa.float64())
    texts = [None if v is None else str(_text(v)) for v in values]
    return pa.array(texts, pa.string())


def check_exact(values: Sequence[object]) -> None:
    """Check that no float may have been an integer beyond 64 bits.

    Raises:
        InexactError: one may have been.
    """
    if any(type(value) is float and abs(value) >= 1 << 63 for value in values):
        raise InexactError


def _is_large(value: object) -> bool:
    return type(value) is int and abs(value) > EXACT


def _integers(values: Sequence[object]) -> pa.Array | None:
    """Return integers up to ±2^53 as int64, otherwise None."""
    try:
        found = pa.array(values, pa.int64())
    except (OverflowError, pa.ArrowInvalid):
        return None
    numbers = (found.fill_null(0) if found.null_count else found).to_numpy()
    return found if numbers.min() >= -EXACT and numbers.max() <= EXACT else None


def _text(value: object) -> str:
    assert isinstance(value, (bool, int, float, str))
    return canonical(value)
