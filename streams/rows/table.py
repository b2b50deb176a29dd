"""Columns of a table as rows, of which one column may hold the labels."""

from collections.abc import Sequence

import pyarrow as pa

from streams.batch import InvalidBatchError
from streams.rows.bounds import SHOWN, check_size
from streams.rows.rows import Chunk, Rows

SHOWN_COLUMNS = 20
"""Columns that a message names."""


def place_of_label(names: Sequence[str], label: str | None, labelled: bool) -> int | None:
    """Return the index of the column with the labels, or None if there is none.

    Args:
        names: of all columns.
        label: name of that column, if it is known.
        labelled: whether it must be there.

    Raises:
        InvalidBatchError: it must be there and is not.
    """
    if label in names:
        return names.index(label)
    if not labelled:
        return None
    more = ", …" if len(names) > SHOWN_COLUMNS else ""
    shown = ", ".join(name[:SHOWN] for name in names[:SHOWN_COLUMNS]) + more
    if label is None:
        raise InvalidBatchError(f"name the column with the labels; the columns are {shown}")
    raise InvalidBatchError(
        f"there is no column {label[:SHOWN]!r} with the labels; the columns are {shown}", label
    )


def rows_of(
    names: Sequence[str],
    columns: Sequence[pa.Array],
    labels: pa.StringArray | None,
    is_bounded: bool = True,
) -> Rows:
    """Return columns as rows, in one chunk.

    Args:
        names: of the columns.
        columns: each of one of `streams.rows.rows.TYPES`, [n].
        labels: canonical texts [n], or None.
        is_bounded: whether there may be too many, as in a request.

    Raises:
        InvalidBatchError: there are none, or too many.
    """
    rows = len(columns[0]) if columns else 1
    check_size(min(rows, 1) if not is_bounded else rows, len(columns))
    return Rows((Chunk(pa.RecordBatch.from_arrays([*columns], [*names]), labels),))
