"""The metadata of an Arrow IPC stream, checked before anything is decoded.

The metadata of 224 bytes can ask for a billion rows, and a schema can refer to one of its parts so
often that its reader never ends. Here only what a table of plain columns needs gets through. The
format is https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format, with the
tables of Message.fbs and Schema.fbs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct

from streams.batch import InvalidBatchError, TooManyError
from streams.rows.bounds import (
    MAX_BYTES,
    MAX_CELLS,
    MAX_COLUMNS,
    MAX_NAME,
    MAX_ROWS,
    MAX_TEXT,
    SHOWN,
    check_names,
)
from streams.rows.ipc.flatbuffer import I8, I16, I64, U8, Table

CONTINUES = b"\xff\xff\xff\xff"
FILE = b"ARROW1"
PREFIX, PAIR = Struct("<i"), Struct("<qq")
V4, V5 = 3, 4
SCHEMA, DICTIONARY, RECORDS = 1, 2, 3
NULL, INT, FLOAT, UTF8, BOOL, DECIMAL, DATE, TIMESTAMP = 1, 2, 3, 5, 6, 7, 8, 10
LARGE_UTF8, UTF8_VIEW = 20, 24
BUFFERS = {
    NULL: 0, INT: 2, FLOAT: 2, UTF8: 3, BOOL: 2, DATE: 2, TIMESTAMP: 2, LARGE_UTF8: 3, UTF8_VIEW: 2,
}  # fmt: skip
"""Buffers of a column by its type; one of views has more."""
REFUSED = {
    4: "binary values", DECIMAL: "decimals; cast it to float64", 9: "times of day",
    11: "intervals", 12: "lists", 13: "structs", 14: "unions", 15: "binary values",
    16: "lists", 17: "maps", 18: "durations", 19: "binary values", 21: "lists",
    22: "runs; decode them", 23: "binary values", 25: "lists", 26: "lists",
}  # fmt: skip
NO_SCHEMA = "an Arrow stream must begin with a schema"
OTHER_BUFFERS = "an Arrow batch has other buffers than its columns need"
KNOWN_BYTES = 64 << 10
"""Longest message with a schema that is remembered."""
MIN_ROWS = 64
"""Rows that a batch counts for at least, since each costs memory of its own."""
MAX_BATCHES = MAX_ROWS // MIN_ROWS


@dataclass(frozen=True)
class _Field:
    name: str
    kind: int
    is_dictionary: bool


@dataclass
class _Sum:
    """The sizes that the messages so far ask for."""

    rows: int = 0
    cells: int = 0
    bytes: int = 0
    batches: int = 0


def check_stream(raw: bytes) -> None:
    """Check that a stream holds plain columns within `streams.rows.bounds`.

    Raises:
        InvalidBatchError: it does not; the message says what to send.
    """
    if raw.startswith(FILE):
        raise InvalidBatchError("an Arrow file; send the stream format (pyarrow.ipc.new_stream)")
    messages = _messages(raw)
    head, _ = next(messages, (None, 0))
    if head is None:
        raise InvalidBatchError(NO_SCHEMA)
    fields = (_known_fields if len(head.raw) <= KNOWN_BYTES else _fields)(head.raw)
    found = _Sum()
    for message, size in messages:
        content, kind = message.table(2), message.number(1, U8)
        if content is None or kind not in (DICTIONARY, RECORDS):
            raise InvalidBatchError(f"an Arrow stream must not have a message of kind {kind}")
        found.batches += 1
        if found.batches > MAX_BATCHES:
            raise TooManyError(f"more than {MAX_BATCHES:,} batches; send larger ones")
        if kind == RECORDS:
            found.rows += _check_batch(content, fields, size, found)
        else:
            _check_dictionary(content, fields, size, found)
    if found.rows == 0:
        raise InvalidBatchError("there are no rows")


def _messages(raw: bytes) -> Iterator[tuple[Table, int]]:
    """Yield the metadata of each message, and the size of its body."""
    place = 0
    while place < len(raw):
        if raw[place : place + 4] != CONTINUES or place + 8 > len(raw):
            raise InvalidBatchError(f"not an Arrow stream: no message begins at byte {place}")
        (length,) = PREFIX.unpack_from(raw, place + 4)
        place += 8
        if length == 0:
            if place < len(raw):
                raise InvalidBatchError(f"bytes follow the end of the Arrow stream at {place}")
            return
        if length < 0 or place + length > len(raw):
            raise InvalidBatchError("the Arrow stream is cut short")
        message = Table(raw[place : place + length])
        size = message.number(3, I64)
        place += length
        if size < 0 or size % 8 or place % 8 or place + size > len(raw):
            raise InvalidBatchError("the Arrow stream is cut short, or its parts are not aligned")
        if message.number(0, I16) not in (V4, V5):
            raise InvalidBatchError("the Arrow stream has another version than V4 and V5")
        if message.count(4):
            raise InvalidBatchError("messages of an Arrow stream must not have metadata of users")
        yield message, size
        place += size


def _fields(message: bytes) -> tuple[_Field, ...]:
    """Return the columns that the first message of a stream declares."""
    head = Table(message)
    if head.number(1, U8) != SCHEMA or (schema := head.table(2)) is None:
        raise InvalidBatchError(NO_SCHEMA)
    if schema.number(0, I16):
        raise InvalidBatchError("the Arrow stream is big-endian; send it little-endian")
    count = schema.count(1)
    if not count:
        raise InvalidBatchError("the rows have no columns")
    if count > MAX_COLUMNS:
        raise TooManyError(f"{count:,} columns, at most {MAX_COLUMNS:,}; send fewer")
    spent = _metadata_size(schema, 2)
    fields = []
    for place, table in enumerate(schema.tables(1), 1):
        text = table.text(0)
        if len(text) > 4 * MAX_NAME:
            raise InvalidBatchError(
                f"the name of column {place} has more than {MAX_NAME} characters"
            )
        try:
            name = text.decode()
        except UnicodeDecodeError as error:
            raise InvalidBatchError(f"the name of column {place} is not UTF-8") from error
        spent += _metadata_size(table, 6)
        if spent > MAX_TEXT:
            raise TooManyError(f"the schema has more than {MAX_TEXT:,} bytes of metadata")
        fields.append(_field(name, table))
    check_names([each.name for each in fields])
    return tuple(fields)


_known_fields = lru_cache(64)(_fields)
"""Most requests of a client have the schema of the one before."""


def _field(name: str, table: Table) -> _Field:
    kind = table.number(2, U8)
    if kind not in BUFFERS or table.count(5):
        what = REFUSED.get(kind, f"values of the unknown type {kind}")
        raise InvalidBatchError(
            f"column {name[:SHOWN]!r} holds {what}; send numbers, strings, booleans or times", name
        )
    for pair in table.tables(6):
        if pair.text(0) == b"ARROW:extension:name":
            kind_name = pair.text(1)[:SHOWN].decode(errors="replace")
            raise InvalidBatchError(
                f"column {name[:SHOWN]!r} has the extension type {kind_name!r}; send its storage",
                name,
            )
    is_dictionary = table.table(4) is not None
    if is_dictionary and kind not in (UTF8, LARGE_UTF8):
        raise InvalidBatchError(
            f"column {name[:SHOWN]!r} is a dictionary of other values than strings; decode it", name
        )
    return _Field(name, kind, is_dictionary)


def _metadata_size(table: Table, index: int) -> int:
    """Return the bytes of metadata, in which many keys may share one text."""
    size = 0
    for pair in table.tables(index):
        size += 16 + pair.count(0) + pair.count(1)
        if size > MAX_TEXT:
            raise TooManyError(f"the schema has more than {MAX_TEXT:,} bytes of metadata")
    return size


def _check_batch(batch: Table, fields: Sequence[_Field], size: int, found: _Sum) -> int:
    """Return the number of rows."""
    rows = batch.number(0, I64)
    if rows < 0 or found.rows + rows > MAX_ROWS:
        raise TooManyError(
            f"{found.rows + rows:,} rows, at most {MAX_ROWS:,}; send several requests"
        )
    found.cells += max(rows, MIN_ROWS) * len(fields)
    if found.cells > MAX_CELLS:
        raise TooManyError(f"{found.cells:,} cells, at most {MAX_CELLS:,}; send several requests")
    views = sum(each.kind == UTF8_VIEW for each in fields)
    most = batch.count(2)
    more = [count for (count,) in batch.structs(4, I64)] if batch.count(4) == views else [-1]
    if not all(0 <= count <= most for count in more):
        raise InvalidBatchError(OTHER_BUFFERS)
    expected = sum(2 if each.is_dictionary else BUFFERS[each.kind] for each in fields) + sum(more)
    _check_data(batch, rows, len(fields), expected, size, found)
    return rows


def _check_dictionary(content: Table, fields: Sequence[_Field], size: int, found: _Sum) -> None:
    if content.number(2, I8):
        raise InvalidBatchError("an Arrow dictionary is sent in parts; send it whole")
    data = content.table(1)
    if data is None or not any(each.is_dictionary for each in fields):
        raise InvalidBatchError("the Arrow stream has a dictionary that no column uses")
    entries = data.number(0, I64)
    if not 0 <= entries <= MAX_ROWS:
        raise TooManyError(f"a dictionary of {entries:,} strings, at most {MAX_ROWS:,}")
    _check_data(data, entries, 1, 3, size, found)


def _check_data(
    batch: Table, rows: int, columns: int, buffers: int, size: int, found: _Sum
) -> None:
    """Check that the parts of a batch are within its body.

    Args:
        batch: its metadata.
        rows, columns, buffers: that it must have.
        size: bytes of its body.
        found: to which the bytes are added.
    """
    if batch.table(3) is not None:
        raise InvalidBatchError("the Arrow stream is compressed; send it uncompressed")
    if batch.count(1) != columns or batch.count(2) != buffers:
        raise InvalidBatchError(OTHER_BUFFERS)
    nodes, spans = batch.structs(1, PAIR), batch.structs(2, PAIR)
    if any(length != rows or not 0 <= missing <= rows for length, missing in nodes):
        raise InvalidBatchError(f"the columns of an Arrow batch differ from its {rows:,} rows")
    for start, length in spans:
        if not (0 <= start <= size and 0 <= length <= size - start and start % 8 == 0):
            raise InvalidBatchError("a buffer of the Arrow stream lies outside its message")
        found.bytes += length
    if found.bytes > MAX_BYTES:
        raise TooManyError(f"{found.bytes:,} bytes of values, at most {MAX_BYTES:,}")
