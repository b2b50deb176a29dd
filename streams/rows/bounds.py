"""The largest rows that a reader accepts, checked before memory is spent on them."""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from streams.batch import InvalidBatchError, TooManyError

MAX_ROWS = 1 << 17
"""Most rows in a request or an entry."""
MAX_COLUMNS = 4_096
MAX_CELLS = 1 << 23
"""Most rows times columns; they are 64 MB as numbers."""
MAX_NAME = 256
"""Characters of the longest name of a column."""
MAX_TEXT = 1 << 20
"""Bytes of the longest value, as UTF-8."""
MAX_BYTES = 256 << 20
"""Bytes of all values, decoded."""
EXACT = 1 << 53
"""Integers up to this magnitude are float64 too; larger ones are kept as texts."""
SHOWN = 40
"""Characters of a name that a message shows."""


def check_size(rows: int, columns: int) -> None:
    """Check how many rows and columns there are.

    Raises:
        InvalidBatchError: there are none, or too many; the message gives the limit.
    """
    if rows < 1:
        raise InvalidBatchError("there are no rows")
    if not columns:
        raise InvalidBatchError("the rows have no columns")
    if rows > MAX_ROWS:
        raise TooManyError(f"{rows:,} rows, at most {MAX_ROWS:,}; send several requests")
    if columns > MAX_COLUMNS:
        raise TooManyError(f"{columns:,} columns, at most {MAX_COLUMNS:,}; send fewer")
    if rows * columns > MAX_CELLS:
        raise TooManyError(
            f"{rows:,} rows of {columns:,} columns are {rows * columns:,} cells, at most "
            f"{MAX_CELLS:,}; send several requests"
        )


def check_names(names: Sequence[str]) -> None:
    """Check the names of columns.

    Raises:
        InvalidBatchError: one is empty, too long, or not unique; the message gives its place.
    """
    if len(set(names)) == len(names) and all(names) and max(map(len, names)) <= MAX_NAME:
        return
    times = Counter(names)
    for place, name in enumerate(names, 1):
        if not name:
            raise InvalidBatchError(f"column {place} has no name; give it one")
        if len(name) > MAX_NAME:
            raise InvalidBatchError(
                f"the name of column {place} has {len(name):,} characters, at most {MAX_NAME}",
                name[:SHOWN],
            )
        if times[name] > 1:
            other = names.index(name, place) + 1
            raise InvalidBatchError(
                f"columns {place} and {other} are both named {name[:SHOWN]!r}; names must differ",
                name,
            )


def check_texts(name: str, texts: pa.StringArray) -> None:
    """Check the lengths of the values of a column.

    Args:
        name: of the column.
        texts: pa.string() or pa.large_string() [n].

    Raises:
        InvalidBatchError: one is too long; the message gives the limit.
    """
    if texts.nbytes <= MAX_TEXT:
        return
    lengths = pc.binary_length(texts)
    if (longest := pc.max(lengths).as_py()) is not None and longest > MAX_TEXT:
        raise InvalidBatchError(
            f"a value of column {name[:SHOWN]!r} has {longest:,} bytes, at most {MAX_TEXT:,}",
            name,
            lengths.index(longest).as_py(),
        )
