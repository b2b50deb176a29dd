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
CUT_SHORT = "the Arrow stream is cut short, or its parts are not aligned"
OTHER_BUFFERS = "an Arrow batch has other buffers than its columns need"
KNOWN_BYTES = 64 << 10
"""Longest metadata that is remembered."""
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
    """The sizes that messages ask for."""

    rows: int = 0
    cells: int = 0
    bytes: int = 0

    def add(self, other: "_Sum") -> None:
        """Add the sizes of another message.

        Raises:
            TooManyError: they are beyond a bound together.
        """
        self.rows += other.rows
        self.cells += other.cells
        self.bytes += other.bytes
        if self.rows > MAX_ROWS:
            raise _too_many_rows(self.rows)
        if self.cells > MAX_CELLS:
            raise TooManyError(
                f"{self.cells:,} cells, at most {MAX_CELLS:,}; send several requests"
            )
        if self.bytes > MAX_BYTES:
            raise TooManyError(f"{self.bytes:,} bytes of values, at most {MAX_BYTES:,}")


def _too_many_rows(rows: int) -> TooManyError:
    return TooManyError(f"{rows:,} rows, at most {MAX_ROWS:,}; send several requests")


def check_stream(raw: bytes) -> None:
    """Check that a stream holds plain columns within `streams.rows.bounds`.

    Raises:
        InvalidBatchError: it does not; the message says what to send.
    """
    if raw.startswith(FILE):
        raise InvalidBatchError("an Arrow file; send the stream format (pyarrow.ipc.new_stream)")
    messages = _messages(raw)
    if (schema := next(messages, None)) is None:
        raise InvalidBatchError(NO_SCHEMA)
    _fields_of(schema)
    found = _Sum()
    for count, message in enumerate(messages, 1):
        if count > MAX_BATCHES:
            raise TooManyError(f"more than {MAX_BATCHES:,} batches; send larger ones")
        is_short = len(schema) + len(message) <= KNOWN_BYTES
        found.add((_known_sizes if is_short else _sizes)(schema, message))
    if found.rows == 0:
        raise InvalidBatchError("there are no rows")


def _messages(raw: bytes) -> Iterator[bytes]:
    """Yield the metadata of each message, whose body lies within the stream."""
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
            raise InvalidBatchError(CUT_SHORT)
        message = raw[place : place + length]
        size = (_known_body if length <= KNOWN_BYTES else _body)(message)
        place += length
        if place % 8 or place + size > len(raw):
            raise InvalidBatchError(CUT_SHORT)
        yield message
        place += size


def _body(message: bytes) -> int:
    """Return the size of the body that the metadata of a message declares, in bytes."""
    head = Table(message)
    size = head.number(3, I64)
    if size < 0 or size % 8:
        raise InvalidBatchError(CUT_SHORT)
    if head.number(0, I16) not in (V4, V5):
        raise InvalidBatchError("the Arrow stream has another version than V4 and V5")
    if head.count(4):
        raise InvalidBatchError("messages of an Arrow stream must not have metadata of users")
    return size


def _sizes(schema: bytes, message: bytes) -> _Sum:
    """Return the sizes that the metadata of one message asks for, which a schema allows."""
    head = Table(message)
    content, kind = head.table(2), head.number(1, U8)
    if content is None or kind not in (DICTIONARY, RECORDS):
        raise InvalidBatchError(f"an Arrow stream must not have a message of kind {kind}")
    check = _check_batch if kind == RECORDS else _check_dictionary
    return check(content, _fields_of(schema), head.number(3, I64))


_known_body, _known_sizes = lru_cache(64)(_body), lru_cache(64)(_sizes)
"""Most requests of a client have as many rows as the one before, and so the same metadata."""


def _fields_of(schema: bytes) -> tuple[_Field, ...]:
    return (_known_fields if len(schema) <= KNOWN_BYTES else _fields)(schema)


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


def _check_batch(batch: Table, fields: Sequence[_Field], size: int) -> _Sum:
    rows = batch.number(0, I64)
    if not 0 <= rows <= MAX_ROWS:
        raise _too_many_rows(rows)
    views = sum(each.kind == UTF8_VIEW for each in fields)
    most = batch.count(2)
    more = [count for (count,) in batch.structs(4, I64)] if batch.count(4) == views else [-1]
    if not all(0 <= count <= most for count in more):
        raise InvalidBatchError(OTHER_BUFFERS)
    expected = sum(2 if each.is_dictionary else BUFFERS[each.kind] for each in fields) + sum(more)
    used = _check_data(batch, rows, len(fields), expected, size)
    return _Sum(rows, max(rows, MIN_ROWS) * len(fields), used)


def _check_dictionary(content: Table, fields: Sequence[_Field], size: int) -> _Sum:
    if content.number(2, I8):
        raise InvalidBatchError("an Arrow dictionary is sent in parts; send it whole")
    data = content.table(1)
    if data is None or not any(each.is_dictionary for each in fields):
        raise InvalidBatchError("the Arrow stream has a dictionary that no column uses")
    entries = data.number(0, I64)
    if not 0 <= entries <= MAX_ROWS:
        raise TooManyError(f"a dictionary of {entries:,} strings, at most {MAX_ROWS:,}")
    return _Sum(bytes=_check_data(data, entries, 1, 3, size))


def _check_data(batch: Table, rows: int, columns: int, buffers: int, size: int) -> int:
    """Check that the parts of a batch are within its body; return their bytes.

    Args:
        batch: its metadata.
        rows, columns, buffers: that it must have.
        size: bytes of its body.
    """
    if batch.table(3) is not None:
        raise InvalidBatchError("the Arrow stream is compressed; send it uncompressed")
    if batch.count(1) != columns or batch.count(2) != buffers:
        raise InvalidBatchError(OTHER_BUFFERS)
    nodes, spans = batch.structs(1, PAIR), batch.structs(2, PAIR)
    if any(length != rows or not 0 <= missing <= rows for length, missing in nodes):
        raise InvalidBatchError(f"the columns of an Arrow batch differ from its {rows:,} rows")
    used = 0
    for start, length in spans:
        if not (0 <= start <= size and 0 <= length <= size - start and start % 8 == 0):
            raise InvalidBatchError("a buffer of the Arrow stream lies outside its message")
        used += length
    return used
