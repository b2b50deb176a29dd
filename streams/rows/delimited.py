"""Rows written as CSV: a header, and a row a line.

The dialect is that of the files of `streams.sources.delimited`: commas, semicolons, tabs or pipes,
quotes by RFC 4180, a byte order mark, any line ends. Blank lines are skipped, and a cell holds at
most 131,072 characters, the limit of Python's reader.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa

from streams.batch import InvalidBatchError, TooManyError
from streams.rows import cells
from streams.rows.bounds import (
    MAX_CELLS,
    MAX_COLUMNS,
    MAX_NAME,
    MAX_ROWS,
    SHOWN,
    check_names,
)
from streams.rows.rows import Rows
from streams.rows.table import place_of_label, rows_of
from streams.sources.encodings import encoding
from streams.sources.faults import TableError, encoding_fault, name_fault, width_fault
from streams.sources.header import UNNAMED, Split, counts, may_be_data, split
from streams.sources.records import Record, records

HEAD = 1 << 17
"""Characters from the beginning among which the header is."""
LONGEST = MAX_COLUMNS * (MAX_NAME + 3)
"""Characters of the longest header."""
BLOCK = 1 << 16
"""Cells that are objects of Python at a time."""


def from_csv(raw: bytes, label: str | None, labelled: bool) -> Rows:
    """Read rows of text with delimiters; the first line names the columns.

    Cells of the spellings `streams.sources.faults.MISSING` are null; `streams.rows.cells` tells the
    kinds of the columns. In a file with semicolons, a comma is a decimal point. A first column
    without a name that counts the rows, as pandas and R write it, is no column of the rows.

    Args:
        raw: the text, in UTF-8 or with the byte order mark of UTF-16 or UTF-32.
        label: name of the column with the labels, which is no column of the rows; None if there is
            none.
        labelled: whether there must be labels; otherwise the column may be there, and is dropped.

    Raises:
        InvalidBatchError: the text is no such table; the message names line and column.
    """
    try:
        text = raw.decode(encoding(raw[:4]), "surrogateescape")
    except UnicodeError as error:
        raise InvalidBatchError(f"the text cannot be decoded: {error}") from error
    try:
        return _read(io.StringIO(text, newline=""), label, labelled)
    except TableError as error:
        raise InvalidBatchError(str(error)) from error


def from_file(file: io.TextIOBase, label: str | None) -> Rows:
    """Read the rows of a whole file, however long, as `from_csv` does.

    Args:
        file: opened without translation of line ends; it can go back to its beginning.
        label: name of the column with the labels; None for no labels.

    Raises:
        InvalidBatchError: the text is no such table; the message names line and column.
    """
    try:
        return _read(file, label, label is not None, is_bounded=False)
    except TableError as error:
        raise InvalidBatchError(str(error)) from error


def columns_of(file: io.TextIOBase) -> list[str]:
    """Return the names of a file's columns, and go back to its beginning.

    Raises:
        TableError: the header is missing or not clear.
    """
    names = [*split(file.readlines(HEAD), fewest=1).names]
    file.seek(0)
    return names


def _read(file: io.TextIOBase, label: str | None, labelled: bool, is_bounded: bool = True) -> Rows:
    head = file.readlines(HEAD)
    if sum(map(len, head[:1])) > LONGEST:
        raise TooManyError(
            f"the first line has more than {LONGEST:,} characters, which {MAX_COLUMNS:,} columns "
            f"with names of {MAX_NAME} do not need"
        )
    header = split(head, fewest=1)
    file.seek(0)
    _check_header(header, label)
    place = place_of_label(header.names, label, labelled)
    places: list[int] = []
    blocks = [_block(batch, header, places) for batch in _batches(file, header, is_bounded)]
    if not blocks:
        raise InvalidBatchError("there are no rows after the header")
    names, columns, labels = [], [], None
    comma = header.delimiter == ";"
    for k, name in enumerate(header.names):
        whole = pa.concat_arrays([block[k] for block in blocks])
        if k == 0 != place and UNNAMED.fullmatch(name) and _counts_rows(whole):
            continue
        if not name:
            raise InvalidBatchError(
                f"column {k + 1} has no name, and does not count the rows: name it in the header, "
                "or remove it (to_csv(index=False))"
            )
        try:
            if k != place:
                names.append(name)
                columns.append(cells.column(name, whole, comma))
            elif labelled:
                labels = cells.labels(name, whole, comma)
        except InvalidBatchError as error:
            if error.index is None:
                raise
            message = f"line {places[error.index]}, column {name[:SHOWN]!r}: {error}"
            raise InvalidBatchError(message, name, error.index) from error
    return rows_of(names, columns, labels, is_bounded)


def _counts_rows(cells: pa.StringArray) -> bool:
    """Return whether cells are whole numbers, each one more than the cell before."""
    try:
        numbers = cells.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        return False
    return bool((np.diff(numbers) == 1).all())


def _check_header(header: Split, label: str | None) -> None:
    names = header.names
    if fault := next(filter(None, map(name_fault, names)), ""):
        raise InvalidBatchError(f"line {header.lines}: {fault}")
    if len(names) > MAX_COLUMNS:
        raise TooManyError(f"{len(names):,} columns, at most {MAX_COLUMNS:,}; send fewer")
    check_names(names[1:] if names[:1] == [""] and len(names) > 1 else names)
    if label not in names and may_be_data(names) and not counts(names):
        raise InvalidBatchError("the text begins with data; its first line must name the columns")


def _batches(lines: Iterable[str], header: Split, is_bounded: bool) -> Iterator[list[Record]]:
    """Yield the records after the header, some at a time.

    Raises:
        TableError: a quote is not closed, or text follows it.
        TooManyError: there are too many rows or cells.
    """
    after = islice(lines, header.lines, None)
    found = records(after, header.delimiter, header.lines + 1)
    width, rows = len(header.names), 0
    while batch := list(islice(found, max(1, BLOCK // width))):
        rows += len(batch)
        if is_bounded and (rows > MAX_ROWS or rows * width > MAX_CELLS):
            raise TooManyError(
                f"more than {MAX_ROWS:,} rows or {MAX_CELLS:,} cells; send several requests"
            )
        yield batch


def _block(batch: Sequence[Record], header: Split, places: list[int]) -> list[pa.StringArray]:
    """Return the cells of records by columns, and append their lines to ``places``.

    Raises:
        InvalidBatchError: a record has another width, or bytes that are not text.
    """
    width = len(header.names)
    for line, row in batch:
        if fault := width_fault(row, width):
            raise InvalidBatchError(f"line {line} {fault}", None, len(places))
        places.append(line)
    try:
        return [
            pa.array(each, pa.string()) for each in zip(*(row for _, row in batch), strict=True)
        ]
    except UnicodeEncodeError:
        first = len(places) - len(batch)
        for index, (line, row) in enumerate(batch, first):
            for name, cell in zip(header.names, row, strict=True):
                if fault := encoding_fault(cell):
                    message = f"line {line}, column {name[:SHOWN]!r}: {fault}"
                    raise InvalidBatchError(message, name, index) from None
        raise
