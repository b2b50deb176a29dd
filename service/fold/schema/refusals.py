"""Refusals of rows at the door: each names the row, the column and the way out."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches

import numpy as np
import orjson
import pyarrow as pa

from service.fold.schema.cells import Cells, cells_of, is_number, label_numbers, labels_of
from service.fold.schema.kinds import Kind
from service.fold.schema.values import Flags, numbers, texts, times, truths
from streams.batch import InvalidBatchError
from streams.rows.rows import Rows

WANTED = {
    Kind.NUMBER: ("a number", "a number"),
    Kind.TIME: ("a time", "an ISO 8601 time such as 2026-01-31T13:00:00Z"),
    Kind.BOOL: ("true or false", "true or false"),
}
"""Names of the kinds that some values do not have, and what to send for them."""
FLOAT = pa.float64()
LONGEST = 40
"""Characters of a value, and names of columns or labels, that a message shows at most."""


def unknown_column(rows: Rows, known: Collection[str]) -> None:
    """Check that every column of rows is known.

    Raises:
        InvalidBatchError: the first column that is not; the index is its first row.
    """
    start = 0
    for chunk in rows.chunks:
        for name in chunk.names:
            if name not in known and len(chunk):
                raise InvalidBatchError(
                    f"unknown column {_short(name)}{_close(name, known)} New columns are rejected "
                    "by the schema; remove this one, or declare it",
                    name,
                    start,
                )
        start += len(chunk)


def check_cells(rows: Rows, kinds: Mapping[str, Kind]) -> None:
    """Check that every value has the kind of its column. Missing values pass.

    Raises:
        InvalidBatchError: the first value of a wrong kind, by row, then in the order of ``kinds``.
    """
    doubtful = _doubtful(rows, kinds)
    if not doubtful:
        return
    found = cells_of(rows, skip=kinds.keys() - doubtful)
    wrong: list[tuple[int, int, str, Kind, Cells, int]] = []
    for place, (name, kind) in enumerate(kinds.items()):
        for cells in found.get(name, ()):
            right = _right(kind, cells)
            if not right.all():
                at = int(np.where(right, len(rows), cells.rows).argmin())
                wrong.append((int(cells.rows[at]), place, name, kind, cells, at))
    if wrong:
        row, _, name, kind, cells, at = min(wrong, key=lambda first: first[:2])
        is_a, send = WANTED[kind]
        raise InvalidBatchError(
            f"column {_short(name)} is {is_a}; row {row} has {_shown(cells.values[at])}. Send "
            f"{send}, or null where it is missing",
            name,
            row,
        )


def _doubtful(rows: Rows, kinds: Mapping[str, Kind]) -> set[str]:
    """Return the columns that may hold values of a wrong kind, by the types of the columns."""
    found: set[str] = set()
    for chunk in rows.chunks:
        if chunk.numbers is not None:
            types = dict.fromkeys(chunk.names, FLOAT)
        else:
            types = {field.name: field.type for field in chunk.columns.schema}
        found |= {name for name, of in types.items() if not fits(kinds.get(name), of)}
    return found


def fits(kind: Kind | None, of: pa.DataType) -> bool:
    """Return whether all values of a type have a kind."""
    match kind:
        case Kind.NUMBER:
            return is_number(of) or pa.types.is_boolean(of)
        case Kind.TIME:
            return bool(pa.types.is_timestamp(of))
        case Kind.BOOL:
            return bool(pa.types.is_boolean(of))
        case _:
            return True


def check_labels(rows: Rows, known: Mapping[str, int], limit: int) -> None:
    """Check that every label is known, or is one of those that still fit.

    Raises:
        InvalidBatchError: the first label that is neither; its field is ``labels``.
    """
    found = labels_of(rows)
    new = [name for name in found.values.unique().to_pylist() if name not in known]
    room = max(limit - len(known), 0)
    if len(new) > room:
        name = new[room]
        why = (
            f"The model has all of its {limit} classes; raise the limit"
            if limit
            else "New labels are rejected by the schema; declare it"
        )
        raise InvalidBatchError(
            f"unknown label {_short(name)}{_close(name, known)} {why}, or correct it",
            "labels",
            int(found.rows[found.values.index(name).as_py()]),
        )


def check_numeric_labels(rows: Rows) -> None:
    """Check that every label is a number, for a model that predicts numbers.

    Raises:
        InvalidBatchError: the first label that float32 does not hold; its field is ``labels``.
    """
    found = labels_of(rows)
    wrong = np.isnan(label_numbers(found.values))
    if wrong.any():
        place = int(wrong.argmax())
        raise InvalidBatchError(
            f"the label {_short(found.values[place].as_py())} is no finite number that float32 "
            "holds, and this model predicts numbers",
            "labels",
            int(found.rows[place]),
        )


def _right(kind: Kind, cells: Cells) -> Flags:
    match kind:
        case Kind.NUMBER:
            return numbers(cells)[1]
        case Kind.TIME:
            return times(cells)[1]
        case Kind.BOOL:
            return truths(cells)[1]
        case Kind.CATEGORY | Kind.TEXT:
            return np.ones(len(cells), np.bool_)


def _close(name: str, known: Collection[str]) -> str:
    """Return the end of a sentence about an unknown name."""
    close = get_close_matches(name, list(known), n=3) if len(name) <= LONGEST else []
    return f"; did you mean {' or '.join(map(_short, close))}?" if close else "."


def _short(name: str) -> str:
    return repr(name if len(name) <= LONGEST else f"{name[:LONGEST]}…")


def _shown(value: pa.Scalar) -> str:
    if not pa.types.is_string(value.type):
        return texts(pa.array([value.as_py()], value.type))[0].decode()
    text = value.as_py()
    return orjson.dumps(text if len(text) <= LONGEST else f"{text[:LONGEST]}…").decode()
